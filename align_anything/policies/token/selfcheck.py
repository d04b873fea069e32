"""The check before the first step: does the layout in force compute what the model would compute alone?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.logging import get_logger
from align_anything.core.types import Batch, Example, Piece
from align_anything.models.adapter import bare_model
from align_anything.models.architecture import plain_attention
from align_anything.models.codes import CHUNK
from align_anything.models.encoding import join, truncate
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import set_text_attention, text_attention
from align_anything.policies.token.attention import (
    SEGMENT_ATTENTION,
    knows_segment_attention,
    register_segment_attention,
)
from align_anything.policies.token.collator import TokenCollator

logger = get_logger(__name__)

PROBE_VOCABULARY = 200
CODES_PROBED, CODES_ALONE = 2, 16
"""Codes of a book among text, and of a model that writes none."""
LONGEST_BEYOND = 512
"""Tokens of the probe beyond a window: enough of what must not be seen to be missed."""
WINDOW_NAMES = re.compile(r'(?!.*(pattern|layers)).*window.*|.*attention_chunk_size|.*local_attention|index_topk')
"""Settings that hold the length of a window; one too many makes the probe longer, nothing else."""
FLOOR = {torch.float64: 1e-8, torch.float32: 2e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""What two right computations may differ by on any model, in nats."""
UNMEASURED = {**FLOOR, torch.bfloat16: 0.15, torch.float16: 0.05}
"""The same where the class knows one attention only, so that nothing can be measured."""
NO_ROUNDING = {torch.float64: 1e-5, torch.float32: 5e-4, torch.bfloat16: 0.5, torch.float16: 0.25}
"""What rounding does not do to half of the tokens of any model that trains."""
LEAST_MOVED = 20
"""What part of the floor scores have to differ by at least where attention is another one; calls round alike."""
MARGIN = 4
"""The allowance as a multiple of the difference that was measured, which is the largest of a few tokens only."""


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
    ModelError when no layout is right, or when the attention that was asked for drops something.
    """
    vocabulary, padded = ordinary_tokens(collate.spec), replace(collate, layout='padded')
    plain = bare_model(model)
    try:
        first(padded)
        allowed = measured_allowance(score, padded, vocabulary, plain, dtype)
        check_layout(score, padded, vocabulary, collate.kinds, dtype, allowed)
        long = long_probe(score, padded, vocabulary, plain)
        check_windows(score, padded, long, dtype, allowed)
    except LayoutMismatch as error:
        advice = (
            'Its scores would be wrong in any layout; it needs a FamilySpec of its own (docs/extending.md).'
            if collate.segmented
            else 'Set model_cfgs.attn_implementation: sdpa.'
        )
        raise ModelError(
            f"model_type '{collate.spec.model_type}' fails the check before training: {error}. {advice}"
        ) from error
    if collate.pads:
        return collate
    if collate.ranks_per_row > 1:
        _require_shared(score, collate, vocabulary, long, dtype, allowed)
        return collate
    try:
        check_layout(score, collate, vocabulary, collate.kinds, dtype, allowed)
        check_windows(score, collate, long, dtype, allowed)
    except (LayoutMismatch, NotImplementedError) as error:
        logger.warning(
            "the '%s' layout is wrong for this model, falling back to 'padded': %s. With max_length_per_batch set "
            'train_cfgs.layout: padded, so that its padding is counted too.',
            collate.layout,
            error,
        )
        if collate.segmented:
            set_text_attention(plain, plain_attention(type(plain), plain.config))
        return padded
    return collate


def _require_shared(
    score: Callable[[Batch], Tensor],
    collate: TokenCollator,
    vocabulary: Sequence[int],
    long: LongProbe | None,
    dtype: torch.dtype,
    allowed: float,
) -> None:
    """Raises ModelError where rows that ranks share are scored wrongly: no other layout shares them.

    Classes that do something with the states of all tokens between their layers fail at the lengths of their tensors.
    """
    try:
        check_layout(score, collate, vocabulary, collate.kinds, dtype, allowed)
        check_windows(score, collate, long, dtype, allowed)
    except (LayoutMismatch, NotImplementedError, RuntimeError, IndexError) as error:
        raise ModelError(
            f"model_type '{collate.spec.model_type}' cannot share rows among {collate.ranks_per_row} ranks in the "
            f'{collate.layout} layout: {error}. Set train_cfgs.sequence_parallel_size: 1.'
        ) from error


@contextmanager
def other_attention(model: nn.Module, name: str) -> Iterator[None]:
    """Lets the language model of `model` use the attention called `name` for a while."""
    asked = text_attention(model)
    set_text_attention(model, name)
    try:
        yield
    finally:
        set_text_attention(model, asked)


def measured_allowance(
    score: Callable[[Batch], Tensor],
    padded: TokenCollator,
    vocabulary: Sequence[int],
    model: nn.Module,
    dtype: torch.dtype,
) -> float:
    """How far two right computations on `model` may lie apart, from what some that differ in order alone do.

    Lone sequences are scored by the attention in force and by transformers' own `eager`, and each beside a copy of
    itself: no mask is at stake in either. Raises ModelError when they differ by more than rounding explains.
    """
    if not type(model)._supports_attention_backend:
        return UNMEASURED[dtype]
    lone = [
        replace(example, responses=[response])
        for example in probe_examples(padded, vocabulary, padded.kinds)
        for response in example.responses
    ]

    def scores(copies: int = 1) -> Tensor:
        with torch.no_grad():
            each = [score(padded([example] * copies)).float() for example in lone]
        return torch.cat([values[: len(values) // copies] for values in each])

    asked = text_attention(model)
    found = scores()
    in_copies = float((scores(2) - found).abs().max())
    if not knows_segment_attention():
        register_segment_attention()
    with other_attention(model, SEGMENT_ATTENTION if asked == 'eager' else 'eager'):
        by_another = (scores() - found).abs()
    # In the middle, since one token that rounding sends to another expert moves far.
    if by_another.median() <= NO_ROUNDING[dtype]:
        return max(FLOOR[dtype], MARGIN * in_copies, MARGIN * float(by_another.max()))
    if asked == 'eager':
        # What only eager computes cannot be measured so.
        return max(UNMEASURED[dtype], MARGIN * in_copies)
    raise ModelError(
        f"the attention '{asked}' gives other scores than transformers' eager one on {type(model).__name__}: they "
        f'differ by {float(by_another.median()):.2g} and more for half of the tokens. It lacks something that the '
        'model needs; set model_cfgs.attn_implementation to sdpa or eager.'
    )


def windows_of(config: Any) -> list[int]:
    """Returns every length in tokens at which the attention of a configuration's language model begins to change."""
    found: list[int] = []
    for name, value in config.get_text_config(decoder=True).to_dict().items():
        if WINDOW_NAMES.fullmatch(name):
            found += [size for size in (value if isinstance(value, list) else [value]) if type(size) is int]
    return [size for size in found if size > 0]


class LongProbe(NamedTuple):
    """Examples longer than a window of so many tokens, and their scores one sequence at a time, `(N,)`."""

    window: int
    examples: list[Example]
    expected: Tensor


def long_probe(
    score: Callable[[Batch], Tensor], padded: TokenCollator, vocabulary: Sequence[int], model: nn.Module
) -> LongProbe | None:
    """Scores sequences longer than every window of the attention, by kernels that read the masks of the model.

    A window that no sequence of the run can be longer than is left out; None when there is no other. So it costs what
    a few sequences of the run may cost.
    """
    windows = [window for window in windows_of(padded.spec.config) if window < padded.spec.max_length]
    if not windows:
        return None
    longest = max(windows)
    length = min(longest + max(min(longest, LONGEST_BEYOND), 16), padded.spec.max_length)
    examples = window_examples(vocabulary, length)
    # Kernels of flash-attention read no mask: they know a window only where the class hands it on beside it.
    reads_masks = padded.segmented or not type(model)._supports_attention_backend
    with torch.no_grad(), other_attention(model, text_attention(model) if reads_masks else SEGMENT_ATTENTION):
        scores = [
            score(padded([replace(example, responses=[response])])).float()
            for example in examples
            for response in example.responses
        ]
    return LongProbe(longest, examples, torch.cat(scores))


def check_windows(
    score: Callable[[Batch], Tensor],
    collator: TokenCollator,
    long: LongProbe | None,
    dtype: torch.dtype,
    allowed: float,
) -> None:
    """Raises `LayoutMismatch` when sequences longer than the windows of the attention are scored wrongly."""
    if long is None:
        return
    with torch.no_grad():
        error = float((long.expected - score(collator(long.examples)).float()).abs().max())
    if not error <= allowed:
        raise LayoutMismatch(
            f'the {collator.layout} layout differs from one sequence at a time beyond a window of {long.window} '
            f'tokens: scores differ by {error:.2g} (allowed {allowed:.2g} in {dtype})'
        )


def window_examples(vocabulary: Sequence[int], length: int) -> list[Example]:
    """A short Example, and one of `length` tokens with two responses that end it."""
    tokens, generator = torch.tensor(list(vocabulary)), torch.Generator().manual_seed(1)

    def text(size: int, weight: float) -> Piece:
        return Piece(tokens[torch.randint(len(tokens), (size,), generator=generator)], torch.full((size,), weight))

    end = max(length // 4, 2)
    return [Example(text(3, 0.0), [text(4, 1.0)]), Example(text(length - end, 0.0), [text(end, 1.0), text(end, 1.0)])]


def ordinary_tokens(spec: FamilySpec) -> list[int]:
    """Ids of tokens that are plain text, and some of those that are codes of media, to build probes from."""
    special = set(spec.tokenizer.added_tokens_decoder) | set(spec.tokenizer.all_special_ids) | spec.media_token_ids
    limit = min(len(spec.tokenizer), spec.config.get_text_config().vocab_size)
    plain = [token for token in range(limit) if token not in special][:PROBE_VOCABULARY]
    if spec.codes is None:
        return plain
    if spec.codes.wordless:
        return [
            first + code for own in spec.codes.kinds.values() for first, _ in own.spans for code in range(CODES_ALONE)
        ]
    codes = [own.first[book] for own in spec.codes.kinds.values() for book in range(len(own.books))]
    return [*plain, *(first + number for first in codes for number in range(CODES_PROBED))]


def probe_batch(collator: TokenCollator) -> Batch:
    """The Batch of `probe_examples` with each kind of media that the run may hold."""
    return collator(probe_examples(collator, ordinary_tokens(collator.spec), collator.kinds))


def probe_examples(
    collator: TokenCollator, vocabulary: Sequence[int], kinds: Sequence[str], seed: int = 0
) -> list[Example]:
    """Two small Examples of ordinary tokens and one medium of each kind, the same on every rank.

    The second example has two responses, so that prefix sharing has something to share. Where codes are sampled at
    once, responses are two turns of such, and what is shown between them.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, codes = torch.tensor(list(vocabulary)), collator.spec.codes
    own = None if codes is None else codes.parallel

    def text(length: int, weight: float) -> Piece:
        picks = torch.randint(len(tokens), (length,), generator=generator)
        return Piece(tokens[picks], torch.full((length,), weight))

    def said(length: int) -> Piece:
        return text(length, 1.0) if own is None else join([at_once(), text(length, 0.0), at_once()])

    def at_once() -> Piece:
        chunk = torch.arange(1, own.length(own.size) + 1)
        sizes = torch.tensor(own.books)[(chunk - 1) % len(own.books)]
        picks = (torch.rand(len(chunk), generator=generator) * sizes).long()
        return Piece(codes.read_as(chunk, chunk) + picks, torch.ones(len(chunk)), token_tensors={CHUNK: chunk})

    def prompt(length: int) -> Piece:
        pieces = [text(length, 0.0), *(collator.spec.dummy(kind) for kind in kinds), text(3, 0.0)]
        return join(pieces, collator.spec.merge_media)

    return [Example(prompt(6), [said(9)]), Example(prompt(4), [said(5), said(7)])]


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


def _first_turn(example: Example, length: int) -> Example:
    return replace(example, responses=[truncate(response, length) for response in example.responses])


def _each_apart(example: Example, books: int) -> Example:
    """The same placeholders, of which each sees none behind it: their count, but for the book, does not go on."""

    def change(piece: Piece) -> Piece:
        chunk = piece.token_tensors[CHUNK]
        return replace(piece, token_tensors={**piece.token_tensors, CHUNK: chunk + 2 * books * (chunk % 2)})

    return replace(example, responses=[change(response) for response in example.responses])


def check_layout(
    score: Callable[[Batch], Tensor],
    collator: TokenCollator,
    vocabulary: Sequence[int],
    kinds: Sequence[str],
    dtype: torch.dtype,
    allowed: float | None = None,
) -> None:
    """Raises `LayoutMismatch` when a score depends on a neighbour, on a later token, or on the layout.

    What is sampled at once has to depend on all of its placeholders, those behind it too.

    Every rank makes the same forward passes, so it is safe under partitioned parameters. `score` maps a Batch to
    `(N,)`; `vocabulary` are ordinary token ids to build the probe from; `allowed` is the `measured_allowance`.
    """
    examples = probe_examples(collator, vocabulary, kinds)
    # Calls of the same shape round alike; only the comparison between layouts needs the full allowance.
    tolerance = UNMEASURED[dtype] if allowed is None else allowed

    def scores(chosen: list[Example], other: TokenCollator = collator) -> Tensor:
        with torch.no_grad():
            return score(other(chosen)).float()

    together = scores(examples)
    first = examples[0].responses[0].units

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
    ends = torch.cumsum(torch.tensor([response.units for example in examples for response in example.responses]), 0) - 1
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

    own = None if collator.spec.codes is None else collator.spec.codes.parallel
    if own is None:
        return
    length = own.length(own.size)
    begun = scores([_first_turn(example, length) for example in examples])
    units = [response.units for example in examples for response in example.responses]
    of_first = torch.cat([values[:length] for values in together.split(units)])
    compare('a later turn changes the scores of what was sampled at once', of_first, begun, tolerance)
    apart = scores([_each_apart(example, len(own.books)) for example in examples])
    moved = float((apart - together).abs().max())
    if length > 1 and not moved > FLOOR[dtype] / LEAST_MOVED:
        raise LayoutMismatch(
            f'tokens that are sampled at once do not see those behind them in the {collator.layout} layout, as if the '
            f'mask were causal: scores are the same without them (they differ by {moved:.2g} in {dtype})'
        )


def random_reading(hidden: Tensor) -> Tensor:
    """Projects hidden states `(N, size)` onto one direction, the same each time, to numbers of order one `(N,)`."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(hidden.shape[-1], generator=generator).to(hidden.device)
    scaled = hidden.float() / hidden.float().square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
    return scaled @ direction / hidden.shape[-1] ** 0.5


def check_head(
    score: Callable[[Batch], Tensor],
    logits: Callable[[Batch], Tensor],
    batch: Batch,
    dtype: torch.dtype,
    among: Callable[[Tensor, int], Tensor | None] = lambda targets, rows: None,
) -> None:
    """Raises `LayoutMismatch` when the chunked op disagrees with the model's own logits `(rows, length, vocabulary)`.

    Catches heads that scale, cap or shift their logits in a way the family does not declare. The model rounds its
    logits to `dtype`, so the larger they are the more is allowed. `among` says which ids each target is scored among.
    """
    with torch.no_grad():
        own = logits(batch).flatten(0, 1)[batch.inputs.score_index].float()
        allowed_ids = among(batch.inputs.targets, own.shape[-1])
        own = own if allowed_ids is None else own.masked_fill(~allowed_ids, -torch.inf)
        expected = torch.log_softmax(own, dim=-1).gather(1, batch.inputs.targets[:, None]).squeeze(1)
        error = float((expected - score(batch).float()).abs().max())
    allowed = max(FLOOR[dtype], 2 * torch.finfo(dtype).eps * float(own[own.isfinite()].abs().max()))
    if not error <= allowed:
        raise LayoutMismatch(f"scores differ by {error:.2g} from the model's own logits (allowed {allowed:.2g})")
