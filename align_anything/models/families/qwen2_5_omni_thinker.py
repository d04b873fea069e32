"""The thinker of Qwen2.5-Omni: pictures, clips and sounds beside text."""

from __future__ import annotations

from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from align_anything.models.omni import PARTS, OmniBody, OmniSpec
from align_anything.models.tower_calls import PatchCalls, SoundCalls, TowerCalls


class AccustomedQwen2_5OmniThinkerModel(Qwen2_5OmniThinkerForConditionalGeneration, OmniBody):
    """Qwen2.5-Omni's thinker with a language-model head."""


class Qwen2_5OmniThinkerSpec(OmniSpec):
    """The rules of the Omni thinkers with the components named."""

    part_prefixes = PARTS

    def tower_calls(self, part: str) -> TowerCalls:
        """Returns how calls of a tower are split; inside the vision tower, patches are sorted by window."""
        return SoundCalls(_tokens) if part == 'audio_tower' else PatchCalls(windows=True)


def _tokens(frames: int) -> int:
    """The tokens of a sound: one convolution and one pooling, each of stride two."""
    return ((frames - 1) // 2 - 1) // 2 + 1


MODEL, SPEC = AccustomedQwen2_5OmniThinkerModel, Qwen2_5OmniThinkerSpec
