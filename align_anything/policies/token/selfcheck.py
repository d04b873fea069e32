"""The check before the first step: does the layout in force compute what the model would compute alone?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.logging import get_logger
from align_anything.core.types import Batch, Example, Piece
from align_anything.models.adapter import bare_model
from align_anything.models.encoding import join
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import set_text_attention
from align_anything.policies.token.collator import TokenCollator

logger = get_logger(__name__)

PROBE_VOCABULARY = 200
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4, torch.bfloat16: 0.15, torch.float16: 0.05}


class LayoutMismatch(Exception):
    """The layout changes a score; the message says which comparison failed and by how much."""


def choose_checked(
    score: Callable[[Batch], Tensor],
    collate: TokenCollator,
    model: nn.Module,
    dtype: torch.dtype,
    first: Callable[[TokenCollator], None] = lambda padded: None,
) -> TokenCollator:
    """Returns `collate` when its layout is right on `model`, else the one of the padded layout.

    With the latter the model takes up the attention of that layout. `first` is what has to hold in any layout. Raises
    ModelError when no layout is right.
    """
    vocabulary, padded = ordinary_tokens(collate.spec), replace(collate, layout='padded')
    try:
        first(padded)
        check_layout(score, padded, vocabulary, collate.kinds, dtype)
    except LayoutMismatch as error:
        raise ModelError(
            f"model_type '{collate.spec.model_type}' fails the check before training: {error}. Its scores would be "
            'wrong in any layout; it needs a FamilySpec of its own (docs/extending.md).'
        ) from error
    try:
        check_layout(score, collate, vocabulary, collate.kinds, dtype)
    except (LayoutMismatch, NotImplementedError) as error:
        logger.warning(
            "the '%s' layout is wrong for this model, falling back to 'padded': %s. With max_length_per_batch set "
            'train_cfgs.layout: padded, so that its padding is counted too.',
            collate.layout,
            error,
        )
        if collate.segmented:
            set_text_attention(bare_model(model), 'sdpa')
        return padded
    return collate


def ordinary_tokens(spec: FamilySpec) -> list[int]:
    """Ids of tokens that are plain text, to build probes from."""
    special = set(spec.tokenizer.added_tokens_decoder) | set(spec.tokenizer.all_special_ids) | spec.media_token_ids
    limit = min(len(spec.tokenizer), spec.config.get_text_config().vocab_size)
    return [token for token in range(limit) if token not in special][:PROBE_VOCABULARY]


def probe_batch(collator: TokenCollator) -> Batch:
    """The Batch of `probe_examples` with each kind of media that the run may hold."""
    return collator(probe_examples(collator, ordinary_tokens(collator.spec), collator.kinds))


def probe_examples(
    collator: TokenCollator, vocabulary: Sequence[int], kinds: Sequence[str], seed: int = 0
) -> list[Example]:
    """Two small Examples of ordinary tokens and one medium of each kind, the same on every rank.

    The second example has two responses, so that prefix sharing has something to share.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(list(vocabulary))

    def text(length: int, weight: float) -> Piece:
        picks = torch.randint(len(tokens), (length,), generator=generator)
        return Piece(tokens[picks], torch.full((length,), weight))

    def prompt(length: int) -> Piece:
        pieces = [text(length, 0.0), *(collator.spec.dummy(kind) for kind in kinds), text(3, 0.0)]
        return join(pieces, collator.spec.merge_media)

    return [Example(prompt(6), [text(9, 1.0)]), Example(prompt(4), [text(5, 1.0), text(7, 1.0)])]


def _last_token_changed(example: Example, vocabulary: Sequence[int]) -> Example:
    def change(piece: Piece) -> Piece:
        ids = piece.ids.clone()
        ids[-1] = next(token for token in vocabulary if token != int(ids[-1]))
        return replace(piece, ids=ids)

    return replace(example, responses=[change(response) for response in example.responses])


def _neighbour_changed(example: Example, vocabulary: Sequence[int]) -> Example:
    plain = set(vocabulary)
    shifted = {token: other for token, other in zip(vocabulary, [*vocabulary[1:], vocabulary[0]], strict=True)}

    def change(piece: Piece) -> Piece:
        return replace(piece, ids=torch.tensor([shifted[t] if t in plain else t for t in piece.ids.tolist()]))

    return replace(
        example, prompt=change(example.prompt), responses=[change(response) for response in example.responses]
    )


def check_layout(
    score: Callable[[Batch], Tensor],
    collator: TokenCollator,
    vocabulary: Sequence[int],
    kinds: Sequence[str],
    dtype: torch.dtype,
) -> None:
    """Raises `LayoutMismatch` when a score depends on a neighbour, on a later token, or on the layout.

    Every rank makes the same forward passes, so it is safe under partitioned parameters. `score` maps a Batch to
    `(N,)`; `vocabulary` are ordinary token ids to build the probe from.
    """
    examples = probe_examples(collator, vocabulary, kinds)
    # Calls of the same shape round alike; only the comparison between layouts needs the full allowance.
    tolerance = TOLERANCE[dtype]

    def scores(chosen: list[Example], other: TokenCollator = collator) -> Tensor:
        with torch.no_grad():
            return score(other(chosen)).float()

    together = scores(examples)
    first = len(examples[0].responses[0])

    def compare(name: str, expected: Tensor, found: Tensor, allowed: float) -> None:
        error = float((expected - found).abs().max())
        if not error <= allowed:
            raise LayoutMismatch(f'{name}: scores differ by {error:.2g} (allowed {allowed:.2g} in {dtype})')

    neighbour = "a neighbour's tokens change a sample's scores"
    changed = scores([examples[0], _neighbour_changed(examples[1], vocabulary)])
    compare(neighbour, together[:first], changed[:first], tolerance / 10)
    changed = scores([_neighbour_changed(examples[0], vocabulary), examples[1]])
    compare(neighbour, together[first:], changed[first:], tolerance / 10)

    leaking = scores([_last_token_changed(example, vocabulary) for example in examples])
    keep = torch.ones(len(together), dtype=torch.bool, device=together.device)
    ends = torch.cumsum(torch.tensor([len(response) for example in examples for response in example.responses]), 0) - 1
    keep[ends] = False
    compare('a later token changes an earlier score', together[keep], leaking[keep], tolerance / 10)

    padded = replace(collator, layout='padded')
    alone = torch.cat(
        [
            scores([replace(example, responses=[response])], padded)
            for example in examples
            for response in example.responses
        ]
    )
    compare(f'the {collator.layout} layout differs from one sequence at a time', alone, together, tolerance)


def random_reading(hidden: Tensor) -> Tensor:
    """Projects hidden states `(N, size)` onto one direction, the same each time, to numbers of order one `(N,)`."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(hidden.shape[-1], generator=generator).to(hidden.device)
    scaled = hidden.float() / hidden.float().square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
    return scaled @ direction / hidden.shape[-1] ** 0.5


def check_head(
    score: Callable[[Batch], Tensor], logits: Callable[[Batch], Tensor], batch: Batch, dtype: torch.dtype
) -> None:
    """Raises `LayoutMismatch` when the chunked op disagrees with the model's own logits `(rows, length, vocabulary)`.

    Catches heads that scale, cap or shift their logits in a way the family does not declare.
    """
    with torch.no_grad():
        expected = torch.log_softmax(logits(batch).float(), dim=-1).flatten(0, 1)[batch.inputs.score_index]
        expected = expected.gather(1, batch.inputs.targets[:, None]).squeeze(1)
        error = float((expected - score(batch).float()).abs().max())
    if not error <= TOLERANCE[dtype]:
        raise LayoutMismatch(f"scores differ by {error:.2g} from the model's own logits")
