"""The output heads of a model: which ids each of them writes."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class OutputHead(NamedTuple):
    """A head that makes logits of hidden states.

    Attributes:
        span: the ids that it writes, from the first one up to but without the second one.
        linear: its last layer, whose rows are those ids.
        before: what hidden states go through before that layer, None for nothing.
    """

    span: tuple[int, int]
    linear: nn.Module
    before: nn.Module | None = None


def output_heads(model: nn.Module) -> list[OutputHead]:
    """Returns the output embedding of a model of transformers as its one head; nothing where it has none."""
    head = model.get_output_embeddings()
    return [] if head is None else [OutputHead((0, model.config.get_text_config().vocab_size), head)]
