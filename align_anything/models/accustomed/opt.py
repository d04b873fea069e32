"""OPT: learned positions, which restart in no row."""

from __future__ import annotations

from typing import Any

from transformers import OPTForCausalLM

from align_anything.models.family import FamilySpec


class AccustomedOPTModel(OPTForCausalLM):
    """OPT with a language-model head."""


class OPTSpec(FamilySpec):
    """Padded rows only: the model counts positions from its mask, and packed rows were never right with it."""

    layouts = ('padded',)

    def __init__(self, config: Any, *args: Any, max_length: int, **kwargs: Any) -> None:
        """Caps `max_length` at the learned positions: there is no embedding beyond them."""
        max_length = min(max_length, config.max_position_embeddings)
        super().__init__(config, *args, max_length=max_length, **kwargs)


MODEL, SPEC = AccustomedOPTModel, OPTSpec
