"""Generic rows for preference learning: two answers, rated answers, or one answer that is good or bad."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, column, filled, items, missing, number, understood
from align_anything.datasets.formatters.mapped import AnsweringFormatter
from align_anything.datasets.formatters.messages import written_turns
from align_anything.datasets.formatters.turns import Meta, PairSample, Sample, Turns, assistant, user

PROMPTS = ('prompt', 'messages', 'question', 'instruction', 'input')


class Answered(AnsweringFormatter):
    """Rows with a prompt in one column and answers in others, each as text, as a list of messages, or as a medium.

    Attributes:
        prompt: column with the prompt; by default the first of `prompt`, `messages`, `question`, `instruction`,
            `input`; where the answers are media, also `caption` or `text`. A row of whole conversations has none.
    """

    prompt: str | None = None

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        turns = self._prompt(raw_sample)
        if not turns:
            return super().format_prompt_only_sample(raw_sample)
        return turns, self.beside(raw_sample)

    def _prompt(self, row: Row) -> Turns:
        name = self.find(row, 'prompt', self.prompt_columns(*PROMPTS))
        if name is None:
            return []
        turns = written_turns(row[name], name, user)
        return [*self.opening_of(row, any(turn['role'] == 'system' for turn in turns)), *turns]

    def _conversation(self, row: Row, answer: Any, where: str) -> Turns:
        """The prompt of the row with an answer, or the answer alone when it is a whole conversation."""
        prompt = self._prompt(row)
        turns = [self.medium(answer, where)] if self.answer_kind() else written_turns(answer, where, assistant)
        if prompt:
            return [*prompt, *turns]
        if len(turns) < 2:
            raise SampleError(
                f'the row has no prompt, and {where} is no conversation with one. '
                "Map the prompt's column with the template option 'prompt'."
            )
        return [*self.opening_of(row, any(turn['role'] == 'system' for turn in turns)), *turns]


@register_template('Preference')
class Preference(Answered):
    """A prompt with a better and a worse answer; without a prompt, two conversations that begin alike.

    Text, lists of `{'role', 'content'}` messages, whose parts may bring media of their own, or media alone.

    Attributes:
        chosen: column with the better answer; by default `chosen` or `better`, or `better_image` where the answers are
            images. Likewise for other media.
        rejected: column with the worse one; by default `rejected`, `worse` or `worse_image`.
        margin: column with the margin by which a reward model should separate them; by default `margin`, where there is
            one.
        soft_label: column with the probability that the answer called chosen is the better one, such as the share of
            votes for it: 0.5 is a tie. Reward models and losses of pairs read it. None is no column.
    """

    chosen: str | None = None
    rejected: str | None = None
    margin: str | None = None
    soft_label: str | None = None

    _answer_columns = MappingProxyType(
        {'chosen': ('chosen', 'better', 'better_{}'), 'rejected': ('rejected', 'worse', 'worse_{}')}
    )

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        better, worse = (self.answer_column(raw_sample, option) for option in ('chosen', 'rejected'))
        meta = self.beside(raw_sample)
        margin = self.find(raw_sample, 'margin', ('margin',))
        if margin and filled(raw_sample, margin):
            meta['margin'] = number(raw_sample[margin], f"column '{margin}'")
        if self.soft_label is not None:
            meta['soft_label'] = number(column(raw_sample, self.soft_label), f"column '{self.soft_label}'")
        conversations = [
            self._conversation(raw_sample, raw_sample[name], f"column '{name}'") for name in (better, worse)
        ]
        return conversations[0], conversations[1], meta


@register_template('Rated')
class Rated(Answered):
    """A prompt with several answers and a rating for each: the best rated one is preferred to the worst rated one.

    Attributes:
        responses: column with the list of answers; by default `responses`, `completions` or `answers`; where they are
            images, also `images`. Likewise for other media.
        ratings: column with the list of numbers, the best being the highest; by default `ratings`, `scores` or
            `rewards`.
        ranks: column with the list of their ranks instead, the best being the lowest; by default `ranks` or `rank`.
    """

    responses: str | None = None
    ratings: str | None = None
    ranks: str | None = None

    _answer_columns = MappingProxyType({'responses': ('responses', 'completions', 'answers', '{}s')})
    _rating_columns: tuple[str, ...] = ('ratings', 'scores', 'rewards')

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        answers, ratings = self._rated(raw_sample)
        best, worst = max(ratings), min(ratings)
        better, worse = (
            self._conversation(raw_sample, answers[ratings.index(rating)], f'the {which} answer')
            for which, rating in (('best', best), ('worst', worst))
        )
        return better, worse, self.beside(raw_sample)

    def check_validation(self, raw_sample: Row) -> bool:
        _, ratings = self._rated(raw_sample)
        return max(ratings) > min(ratings)

    def _rated(self, row: Row) -> tuple[list[Any], list[float]]:
        name = self.answer_column(row, 'responses')
        rated, sign = self.find(row, 'ratings', self._rating_columns), 1
        if rated is None:
            rated, sign = self.find(row, 'ranks', ('ranks', 'rank')), -1
        if rated is None:
            lacking = missing(row, (*self._rating_columns[:1], 'ranks'))
            raise SampleError(f"{lacking} Map it with the template option 'ratings' or 'ranks'.")
        answers = items(row, name)
        ratings = [sign * number(value, f"an entry of column '{rated}'") for value in items(row, rated)]
        if len(answers) != len(ratings) or len(answers) < 2:
            raise SampleError(
                f"column '{name}' has {len(answers)} answers and column '{rated}' {len(ratings)} ratings: "
                'there should be as many of both, two at least.'
            )
        return answers, ratings


@register_template('Unpaired')
class Unpaired(Answered):
    """A prompt, an answer, and whether the answer is good.

    Attributes:
        response: column with the answer; by default `completion`, `response`, `output` or `answer`; where it is an
            image, also `image`. Likewise for other media.
        label: column with true for a good answer; by default `label`. 1 and 0 count as true and false.
    """

    response: str | None = None
    label: str | None = None

    _answer_columns = MappingProxyType({'response': ('completion', 'response', 'output', 'answer', '{}')})

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        name = self.answer_column(raw_sample, 'response')
        label = self.require(raw_sample, 'label', ('label',))
        meta: Meta = {**self.beside(raw_sample), 'label': understood(raw_sample[label])}
        return self._conversation(raw_sample, raw_sample[name], f"column '{name}'"), meta
