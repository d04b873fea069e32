"""Qwen2-Audio: every audio clip is padded to the length that the encoder takes, thirty seconds in the large one."""

from __future__ import annotations

from functools import cached_property

from transformers import Qwen2AudioForConditionalGeneration

from align_anything.core.errors import SampleError
from align_anything.core.types import Piece
from align_anything.models import structure
from align_anything.models.encoding import RunEncoder
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import Run


class AccustomedQwen2AudioModel(Qwen2AudioForConditionalGeneration):
    """Qwen2-Audio with a language-model head."""


class Qwen2AudioEncoder(RunEncoder):
    """Refuses audio clips too short to stand in a sequence."""

    def piece(self, run: Run, first: bool = False) -> Piece:
        """Encodes one run. Raises SampleError, also for an audio clip of one token.

        The model takes a batch without two neighbouring audio tokens for one whose placeholders are not expanded.
        """
        piece = super().piece(run, first)
        if 'feature_attention_mask' in piece.media:
            frames = int(piece.media['feature_attention_mask'].sum(-1).min())
            if ((frames - 1) // 2 - 1) // 2 + 1 < 2:
                raise SampleError(f'the audio is too short for this model: {frames} frames of 10 ms')
        return piece


class Qwen2AudioSpec(FamilySpec):
    """The default rules with the components named."""

    encoder_class = Qwen2AudioEncoder
    component_prefixes = {
        'audio_tower': ('model.audio_tower',),
        'mm_proj': ('model.multi_modal_projector',),
        'language_model': ('model.language_model', 'lm_head'),
    }

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        """Layouts that the text model can compute; transformers says nothing about the model around it."""
        return structure.layouts(self.config.text_config)


MODEL, SPEC = AccustomedQwen2AudioModel, Qwen2AudioSpec
