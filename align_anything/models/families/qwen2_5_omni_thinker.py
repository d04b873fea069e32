"""The thinker of Qwen2.5-Omni: images, videos and audio beside text."""

from __future__ import annotations

from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from align_anything.models.omni import COMPONENTS, OmniBody, OmniSpec
from align_anything.models.tower_calls import AudioCalls, PatchCalls, TowerCalls


class AccustomedQwen2_5OmniThinkerModel(Qwen2_5OmniThinkerForConditionalGeneration, OmniBody):
    """Qwen2.5-Omni's thinker with a language-model head."""


class Qwen2_5OmniThinkerSpec(OmniSpec):
    """The rules of the Omni thinkers with the components named."""

    component_prefixes = COMPONENTS

    def tower_calls(self, component: str) -> TowerCalls:
        """Returns how calls of a tower are split; inside the vision tower, patches are sorted by window."""
        return AudioCalls(_tokens) if component == 'audio_tower' else PatchCalls(windows=True)


def _tokens(frames: int) -> int:
    """The tokens of an audio clip: one convolution and one pooling, each of stride two."""
    return ((frames - 1) // 2 - 1) // 2 + 1


MODEL, SPEC = AccustomedQwen2_5OmniThinkerModel, Qwen2_5OmniThinkerSpec
