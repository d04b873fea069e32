"""Answers about a video, as the examples for Qwen2-VL hold them."""

from __future__ import annotations

from types import MappingProxyType

from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, first_of, text
from align_anything.datasets.formatters.questions import MediaQuestion
from align_anything.datasets.formatters.turns import PairSample, Sample, assistant, pair


@register_template('Qwen2-VL')
class Qwen2VL(MediaQuestion):
    """Columns `video_path`, `prompt` with `output`, or with `better_output` and `worse_output`."""

    _kind = 'video'
    _media = 'video_path'
    _folder_variables = MappingProxyType({'video': 'ROOT_VIDEO_PATH'})
    _questions = ('prompt',)

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return [*prompt, assistant(text(raw_sample, first_of(raw_sample, ('output', 'better_output'))))], meta

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return pair(prompt, text(raw_sample, 'better_output'), text(raw_sample, 'worse_output'), meta)
