"""align-anything's own datasets about an audio clip or a video."""

from __future__ import annotations

from types import MappingProxyType

from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.questions import AnsweredOrRanked, Refined


@register_template('AA_TA2T')
class AA_TA2T(AnsweredOrRanked):
    """Columns `audio_path`, `prompt`, `response_1`, `response_2`, `overall_response`; or with one `response`."""

    _kind = 'audio'
    _media = 'audio_path'
    _questions = ('prompt',)


@register_template('AA_TA2T_LLF')
class AA_TA2T_LLF(Refined):
    """Columns `audio`, `prompt`, `response`, `refinement`: the refined answer is preferred to the first one."""

    _kind = 'audio'
    _media = 'audio'
    _questions = ('prompt',)


@register_template('AA_TV2T')
class AA_TV2T(AnsweredOrRanked):
    """Columns `video_path`, `prompt`, `response_1`, `response_2`, `overall_response`; or with one `response`."""

    _kind = 'video'
    _media = 'video_path'
    _folder_variables = MappingProxyType({'video': 'ROOT_VIDEO_PATH'})
    _questions = ('prompt',)
