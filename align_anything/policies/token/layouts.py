"""How sequences stand in memory: rows with padding, one row without, or one row that shares prompts.

A layout turns sequences into the token tensors of a `Batch`. It knows no losses and never compares token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from align_anything.policies.token.attention import AttentionPlan, chunk_blocks, media_blocks, row_mask
from align_anything.policies.token.spans import Span

LAYOUTS = ('padded', 'packed', 'shared_prefix')
BLOCKS = 'blocks'
"""Of padded rows what an `AttentionPlan` says of others: the tokens that see each other in both directions."""


@dataclass
class TokenSequence:
    """One response as the model reads it: the pieces in order, their positions, and which tokens are scored.

    Attributes:
        response: index of the response that its units belong to.
        prompt: index of the prompt that this sequence continues; sequences with equal index may share it.
        prefix_length: number of prompt tokens, of those that share a prompt the beginning of the longest.
        end: number of tokens of prompt and response together; what follows is a dummy.
        guides: whether it is a response behind its unconditional prompt: nothing of it is scored, but it says what
            predicts the units of the sequence before it without that prompt.
        read: ids as the model reads them, where placeholders stand in the place of some, `(length,)`.
        chunk: counts these placeholders from 1 on, zero elsewhere, `(length,)`; see `models/codes.py`.
        ids: `(length,)`; `positions`: `(rows, length)`; `weights`: `(length,)`; `token_tensors`: each `(length,)`, or
            with a further dimension.
    """

    response: int
    prompt: int
    prefix_length: int
    end: int
    ids: Tensor
    positions: Tensor
    weights: Tensor
    is_media: Tensor
    token_tensors: dict[str, Tensor] = field(default_factory=dict)
    guides: bool = False
    read: Tensor | None = None
    chunk: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.numel()

    @property
    def shown(self) -> Tensor:
        """The ids that the model reads, `(length,)`."""
        return self.ids if self.read is None else self.read

    @property
    def counted(self) -> Tensor:
        """`chunk`, zeros where there are no placeholders."""
        return torch.zeros_like(self.ids) if self.chunk is None else self.chunk


@dataclass
class TokenInputs:
    """What a token policy reads of a Batch.

    Attributes:
        arguments: keyword arguments of the model body (ids, positions, mask, media, attention plan).
        score_index: position in the flattened `(rows * length,)` hidden states that predicts each unit, `(N,)`.
        targets: token id of each unit, `(N,)`.
        target_index: position of each unit itself, `(N,)`.
        ends: position in the flattened hidden states of the last token of each response, `(R,)`.
        distinct: whether a token counts, of the flattened ones, `(rows * length,)` bool: not for padding and dummies,
            and of a prompt that several rows repeat only once.
        unconditional: position that predicts each unit behind the unconditional prompt, `(N,)`, its own where it is
            not guided; None where nothing is.
        guidance: how far scores are led from the unconditional to the conditional prediction: 1 to the latter.
    """

    arguments: dict[str, Any]
    score_index: Tensor
    targets: Tensor
    target_index: Tensor
    ends: Tensor
    distinct: Tensor
    unconditional: Tensor | None = None
    guidance: float = 1.0


@dataclass
class PackedBatch:
    """Sequences in one layout: what the policy reads of them but media, and the units to score, see `Batch`."""

    inputs: TokenInputs
    segments: Tensor
    weights: Tensor
    tokens: int
    padding: int


class _Units:
    """The units of sequences, as they come: what predicts each, and what does so without its prompt."""

    def __init__(self) -> None:
        self._found: list[tuple[Tensor, ...]] = []
        self._unconditional: list[Tensor] = []

    def add(self, sequence: TokenSequence, from_token: int, position: Tensor) -> None:
        """Adds those of one sequence; what guides stands behind the sequence that it guides."""
        index, *rest = units_of(sequence, from_token, position)
        if sequence.guides:
            self._unconditional[-1] = index
        else:
            self._found.append((index, *rest))
            self._unconditional.append(index)

    def together(self) -> tuple[Tensor, ...]:
        """Returns where the predictor of each unit stands, and it itself, its id, response, weight, other predictor."""
        return *map(torch.cat, zip(*self._found, strict=True)), torch.cat(self._unconditional)


class _Scored:
    """How many tokens of each prompt are scored already: a token of a prompt is scored once."""

    def __init__(self) -> None:
        self._tokens: dict[int, int] = {}

    def first_of(self, sequence: TokenSequence) -> int:
        """Returns the token of the sequence from which on it is scored."""
        first = min(self._tokens.get(sequence.prompt, 0), sequence.prefix_length)
        self._tokens[sequence.prompt] = max(self._tokens.get(sequence.prompt, 0), sequence.prefix_length)
        return first


def units_of(sequence: TokenSequence, from_token: int, position: Tensor) -> tuple[Tensor, ...]:
    """Units of one sequence: where their predictor stands, and they themselves, their ids, response and weight.

    `position[t]` is where token t stands in the flattened hidden states. A token is predicted by the one before it in
    its own sequence, so the first token of a sequence has no score; what is sampled at once is predicted where its own
    placeholder stands.
    """
    scored = torch.nonzero(sequence.weights, as_tuple=True)[0]
    scored = scored[scored >= max(from_token, 1)]
    owner = torch.full_like(scored, sequence.response)
    before = torch.where(sequence.counted[scored] > 0, scored, scored - 1)
    return position[before], position[scored], sequence.ids[scored], owner, sequence.weights[scored]


def pad(sequences: Sequence[TokenSequence], pad_token_id: int) -> PackedBatch:
    """One row per sequence, padded on the right. `(sequences, longest)`."""
    length = max(len(sequence) for sequence in sequences)
    rows = len(sequences)
    input_ids = torch.full((rows, length), pad_token_id)
    attention_mask = torch.zeros((rows, length), dtype=torch.long)
    positions = sequences[0].positions.new_zeros((sequences[0].positions.shape[0], rows, length))
    token_tensors = {
        name: tensor.new_zeros((rows, length, *tensor.shape[1:])) for name, tensor in sequences[0].token_tensors.items()
    }
    units, scored = _Units(), _Scored()
    distinct = torch.zeros((rows, length), dtype=torch.bool)
    blocks = torch.zeros((rows, length), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        own = slice(0, len(sequence))
        input_ids[row, own] = sequence.shown
        attention_mask[row, own] = 1
        blocks[row, own] = chunk_blocks(sequence.counted)
        positions[:, row, own] = sequence.positions
        for name, tensor in sequence.token_tensors.items():
            token_tensors[name][row, own] = tensor
        first = scored.first_of(sequence)
        distinct[row, first : sequence.end] = not sequence.guides
        units.add(sequence, first, row * length + torch.arange(len(sequence)))
    inputs = {
        'input_ids': input_ids,
        'attention_mask': attention_mask,
        'position_ids': _squeeze(positions),
        **token_tensors,
        **({BLOCKS: blocks} if bool(blocks.any()) else {}),
    }
    # The last sequence of a response ends it.
    ends = {
        sequence.response: row * length + sequence.end - 1
        for row, sequence in enumerate(sequences)
        if not sequence.guides
    }
    padding = int((1 - attention_mask).sum())
    index, standing, targets, segments, weights, unconditional = units.together()
    last = torch.tensor(list(ends.values()))
    tokens = TokenInputs(inputs, index, targets, standing, last, distinct.flatten(), unconditional)
    return PackedBatch(tokens, segments, weights, rows * length, padding)


def pack(
    sequences: Sequence[TokenSequence],
    *,
    share: bool,
    segmented: bool,
    bidirectional: bool,
    multiple: int = 1,
    pad_token_id: int = 0,
) -> PackedBatch:
    """All sequences in one row without padding; with `share`, sequences of one prompt hold it once and branch from it.

    Its length is filled up to a multiple of `multiple` with tokens that nothing sees.

    With `segmented` attention the row carries an `AttentionPlan`; without, the variable-length arguments of
    flash-attention (which cannot branch, so `share` needs `segmented`).
    """
    spans: list[Span] = []
    units, scored = _Units(), _Scored()
    ends: dict[int, Tensor] = {}
    columns: list[tuple[TokenSequence, slice]] = []
    longest = {sequence.prompt: sequence for sequence in sorted(sequences, key=lambda item: item.prefix_length)}
    prompt_spans: dict[int, Span] = {}
    distinct: list[Tensor] = []
    offset = 0

    def put(sequence: TokenSequence, selected: slice, prefix: Span | None = None) -> Span:
        nonlocal offset
        length = len(range(*selected.indices(len(sequence))))
        span = Span(offset, offset + length, prefix.start if prefix else 0, prefix.stop if prefix else 0)
        columns.append((sequence, selected))
        spans.append(span)
        offset += length
        return span

    for sequence in sequences:
        if share and sequence.prefix_length:
            if sequence.prompt not in prompt_spans:
                whole = longest[sequence.prompt]
                prompt_spans[sequence.prompt] = put(whole, slice(0, whole.prefix_length))
            start = prompt_spans[sequence.prompt].start
            prefix = Span(start, start + sequence.prefix_length)
            branch = put(sequence, slice(sequence.prefix_length, len(sequence)), prefix)
            position = torch.cat([torch.arange(prefix.start, prefix.stop), torch.arange(branch.start, branch.stop)])
        else:
            own = put(sequence, slice(0, len(sequence)))
            position = torch.arange(own.start, own.stop)
        first = scored.first_of(sequence)
        units.add(sequence, first, position)
        if not sequence.guides:
            ends[sequence.response] = position[sequence.end - 1]
            distinct.append(position[first : sequence.end])

    filler = -offset % multiple
    if filler:
        put(_filler(sequences[0], filler, pad_token_id), slice(0, filler))

    inputs: dict[str, object] = {
        'input_ids': torch.cat([sequence.shown[selected] for sequence, selected in columns])[None],
        'position_ids': _squeeze(
            torch.cat([sequence.positions[:, selected] for sequence, selected in columns], dim=1)[:, None]
        ),
    }
    for name in sequences[0].token_tensors:
        inputs[name] = torch.cat([sequence.token_tensors[name][selected] for sequence, selected in columns])[None]
    if segmented:
        starts = [span.start for span in spans]
        blocks = chunk_blocks(torch.cat([sequence.counted[selected] for sequence, selected in columns]), starts)
        if bidirectional:
            is_media = torch.cat([sequence.is_media[selected] for sequence, selected in columns])
            blocks = torch.where(is_media, media_blocks(is_media, starts) + blocks.max(), blocks)
        # Without any it is plain causal attention, which faster kernels compute.
        inputs['segments'] = AttentionPlan(tuple(spans), blocks if bool(blocks.any()) else None)
        # Without one, transformers would build the dense block mask that the plan makes needless.
        inputs['attention_mask'] = row_mask()
    else:
        bounds = torch.tensor([0, *(span.stop for span in spans)], dtype=torch.int32)
        most = max(span.stop - span.start for span in spans)
        inputs |= {'cu_seq_lens_q': bounds, 'cu_seq_lens_k': bounds, 'max_length_q': most, 'max_length_k': most}
        inputs['attention_mask'] = None
    index, standing, targets, segments, weights, unconditional = units.together()
    last = torch.stack(list(ends.values()))
    counts = torch.zeros(offset, dtype=torch.bool).index_fill(0, torch.cat(distinct), True)
    tokens = TokenInputs(inputs, index, targets, standing, last, counts, unconditional)
    return PackedBatch(tokens, segments, weights, offset, padding=filler)


def _filler(like: TokenSequence, length: int, pad_token_id: int) -> TokenSequence:
    return TokenSequence(
        response=like.response,
        prompt=like.prompt,
        prefix_length=0,
        end=length,
        ids=torch.full((length,), pad_token_id),
        positions=torch.arange(length).expand(like.positions.shape[0], length).to(like.positions.dtype),
        weights=torch.zeros(length),
        is_media=torch.zeros(length, dtype=torch.bool),
        token_tensors={
            name: tensor.new_zeros((length, *tensor.shape[1:])) for name, tensor in like.token_tensors.items()
        },
    )


def _squeeze(positions: Tensor) -> Tensor:
    # (1, rows, length) is the plain form (rows, length); families with several position rows keep all of them.
    return positions[0] if positions.shape[0] == 1 else positions
