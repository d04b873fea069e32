"""Datasets whose questions and answers may both hold texts and images."""

from __future__ import annotations

from typing import Any

from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, as_text, filled, missing, text
from align_anything.datasets.formatters.turns import PairSample, Sample, assistant, with_own
from align_anything.datasets.formatters.vl_preferences import RLAIFV
from align_anything.datasets.turn_keys import listed

MARK = '<image>'


class TextsAndImages(BaseFormatter):
    """Rows whose turns have a column with a text and one with an image or a list of images, either of them optional.

    `<image>` in a text says where an image stands.

    Attributes:
        _input: columns of the question.
        _output: columns of the answer.
    """

    _input: tuple[str, str] = ('input_text', 'input_image')
    _output: tuple[str, str] = ('output_text', 'output_image')

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return [*prompt, self.turn(raw_sample, 'assistant', self._output)], meta

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        return [*self.opening(), self.turn(raw_sample, 'user', self._input)], {}

    def turn(self, row: Row, role: str, columns: tuple[str, str]) -> dict[str, Any]:
        """Returns the turn with what the row has in both columns."""
        said, images = columns
        if not {said, images} & row.keys():
            raise missing(row, columns)
        words = as_text(row[said], f"column '{said}'") if filled(row, said) else ''
        return with_own(role, words, 'image', row.get(images))


class TextsAndImagesPair(TextsAndImages):
    """Rows with a question and two answers, the better and the worse one."""

    _better: tuple[str, str] = ('better_text', 'better_img')
    _worse: tuple[str, str] = ('worse_text', 'worse_img')

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        better, _, meta = self.format_preference_sample(raw_sample)
        return better, meta

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        better, worse = (self.turn(raw_sample, 'assistant', columns) for columns in (self._better, self._worse))
        return [*prompt, better], [*prompt, worse], meta


@register_template('ti2ti')
class TI2TI(TextsAndImages):
    """Columns `input_text`, `input_image`, `output_text`, `output_image`."""


@register_template('Chameleon')
class Chameleon(TextsAndImages):
    """Columns `input_text`, `input_image`, `output_text`, `output_image`."""


@register_template('Any2Any')
class Any2Any(TextsAndImages):
    """Columns `input_text`, `input_image`, `output_text`, `output_image`, those that a row has."""


@register_template('ANYTHING_TI2TI')
class ANYTHING_TI2TI(TextsAndImages):
    """Columns `question`, `image_url`, `response`, `output_image_url`."""

    _input = ('question', 'image_url')
    _output = ('response', 'output_image_url')


@register_template('ti2ti_preference')
class TI2TIPreference(TextsAndImagesPair):
    """Columns `input_text`, `input_image`, `better_text`, `better_img`, `worse_text`, `worse_img`."""


@register_template('Chameleon_preference')
class ChameleonPreference(TextsAndImagesPair):
    """Columns `input_text`, `input_image`, `better_text`, `better_img`, `worse_text`, `worse_img`."""


@register_template('spavl_ti2ti')
class SpavlTI2TI(RLAIFV):
    """Columns `image`, `question`, `chosen`, `rejected`: answers in text."""


@register_template('AA_textfeedback')
class AATextFeedback(BaseFormatter):
    """Columns `question`, `image_url`, `feedback`, and of two answers `response_1`, `output_image_url_1` and so on.

    The model learns to write the feedback, in text.

    Attributes:
        request: what is asked of the model, behind the two answers.
    """

    request: str = 'Compare the two answers and say which one is better.'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return [*prompt, assistant(text(raw_sample, 'feedback'))], meta

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        texts, images = [], []
        for heading, said, shown in (
            ('Question', 'question', 'image_url'),
            ('Answer 1', 'response_1', 'output_image_url_1'),
            ('Answer 2', 'response_2', 'output_image_url_2'),
        ):
            own = listed(raw_sample[shown]) if filled(raw_sample, shown) else []
            words = text(raw_sample, said)
            texts.append(f'{heading}: {"" if MARK in words else MARK * len(own)}{words}')
            images += own
        asked = {'role': 'user', 'content': '\n'.join([*texts, self.request])}
        return [*self.opening(), {**asked, 'images': images} if images else asked], {}
