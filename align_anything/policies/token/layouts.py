"""How sequences stand in memory: rows with padding, one row without, or one row that shares prompts.

A layout turns paths into the token tensors of a `Batch`. It knows nothing about losses and never compares token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from align_anything.core.types import Piece
from align_anything.policies.token.attention import AttentionPlan, Span, media_blocks

LAYOUTS = ('padded', 'packed', 'shared_prefix')


@dataclass
class Path:
    """One response as the model reads it: the pieces in order, their positions, and which tokens are scored.

    Attributes:
        prompt: index of the prompt that this path continues; paths with equal index may share it.
        prefix_length: number of prompt tokens.
        end: number of tokens of prompt and response together; what follows is a dummy.
        ids: `(length,)`; `positions`: `(rows, length)`; `weights`: `(length,)`; `token_tensors`: each `(length,)`.
        prompt_scored: whether weights on the prompt count here (once per prompt, in its first path).
    """

    prompt: int
    prefix_length: int
    end: int
    ids: Tensor
    positions: Tensor
    weights: Tensor
    is_media: Tensor
    token_tensors: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.ids.numel()


@dataclass
class Laid:
    """Token tensors of one batch: keyword arguments of the model body and the units to score, see `Batch`."""

    inputs: dict[str, object]
    score_index: Tensor
    targets: Tensor
    segments: Tensor
    weights: Tensor
    ends: Tensor
    tokens: int
    padding: int


def units_of(path: Path, response: int, from_token: int, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Units of one path: where their predictor stands, their ids, response and weight.

    `place[t]` is where token t stands in the flattened hidden states. A token is predicted by the one before it in
    its own path, so the first token of a path has no score.
    """
    scored = torch.nonzero(path.weights, as_tuple=True)[0]
    scored = scored[scored >= max(from_token, 1)]
    return place[scored - 1], path.ids[scored], torch.full_like(scored, response), path.weights[scored]


def concatenate(pieces: Sequence[Piece], names: Sequence[str]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Joins pieces end to end: ids, weights, and the named per-token tensors (zeros where a piece has none)."""
    ids = torch.cat([piece.ids for piece in pieces])
    weights = torch.cat([piece.weights for piece in pieces])
    tensors = {
        name: torch.cat([piece.token_tensors.get(name, torch.zeros_like(piece.ids)) for piece in pieces])
        for name in names
    }
    return ids, weights, tensors


def _gather_units(parts: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index, targets, segments, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    return index, targets, segments, weights


def lay_padded(paths: Sequence[Path], pad_token_id: int) -> Laid:
    """One row per path, padded on the right. `(paths, longest)`."""
    length = max(len(path) for path in paths)
    rows = len(paths)
    input_ids = torch.full((rows, length), pad_token_id)
    attention_mask = torch.zeros((rows, length), dtype=torch.long)
    positions = paths[0].positions.new_zeros((paths[0].positions.shape[0], rows, length))
    token_tensors = {name: torch.zeros((rows, length), dtype=torch.long) for name in paths[0].token_tensors}
    units, seen_prompts = [], set()
    for row, path in enumerate(paths):
        own = slice(0, len(path))
        input_ids[row, own] = path.ids
        attention_mask[row, own] = 1
        positions[:, row, own] = path.positions
        for name, tensor in path.token_tensors.items():
            token_tensors[name][row, own] = tensor
        first = path.prefix_length if path.prompt in seen_prompts else 0
        seen_prompts.add(path.prompt)
        units.append(units_of(path, row, first, row * length + torch.arange(len(path))))
    inputs = {
        'input_ids': input_ids,
        'attention_mask': attention_mask,
        'position_ids': _squeeze(positions),
        **token_tensors,
    }
    ends = torch.tensor([row * length + path.end - 1 for row, path in enumerate(paths)])
    padding = int((1 - attention_mask).sum())
    return Laid(inputs, *_gather_units(units), ends=ends, tokens=rows * length, padding=padding)


def lay_flat(paths: Sequence[Path], *, share: bool, segmented: bool, bidirectional: bool) -> Laid:
    """All paths in one row without padding; with `share`, paths of one prompt hold it once and branch from it.

    With `segmented` attention the row carries an `AttentionPlan`; without, the variable-length arguments of
    flash-attention (which cannot branch, so `share` needs `segmented`).
    """
    spans: list[Span] = []
    units = []
    ends: list[Tensor] = []
    columns: list[tuple[Path, slice]] = []
    prompt_spans: dict[int, Span] = {}
    offset = 0

    def put(path: Path, part: slice, prefix: Span | None = None) -> Span:
        nonlocal offset
        length = len(range(*part.indices(len(path))))
        span = Span(offset, offset + length, prefix.start if prefix else 0, prefix.stop if prefix else 0)
        columns.append((path, part))
        spans.append(span)
        offset += length
        return span

    for response, path in enumerate(paths):
        first = 0
        if share and path.prefix_length:
            prefix = prompt_spans.get(path.prompt)
            if prefix is None:
                prefix = prompt_spans[path.prompt] = put(path, slice(0, path.prefix_length))
            else:
                first = path.prefix_length
            branch = put(path, slice(path.prefix_length, len(path)), prefix)
            place = torch.cat([torch.arange(prefix.start, prefix.stop), torch.arange(branch.start, branch.stop)])
        else:
            whole = put(path, slice(0, len(path)))
            first = path.prefix_length if path.prompt in prompt_spans else 0
            prompt_spans[path.prompt] = whole
            place = torch.arange(whole.start, whole.stop)
        units.append(units_of(path, response, first, place))
        ends.append(place[path.end - 1])

    inputs: dict[str, object] = {
        'input_ids': torch.cat([path.ids[part] for path, part in columns])[None],
        'position_ids': _squeeze(torch.cat([path.positions[:, part] for path, part in columns], dim=1)[:, None]),
    }
    for name in paths[0].token_tensors:
        inputs[name] = torch.cat([path.token_tensors[name][part] for path, part in columns])[None]
    if segmented:
        blocks = None
        if bidirectional:
            is_media = torch.cat([path.is_media[part] for path, part in columns])
            blocks = media_blocks(is_media, [span.start for span in spans])
        inputs['segments'] = AttentionPlan(tuple(spans), blocks)
        # A mask of four dimensions is passed through by transformers as it is; without one it would build the dense
        # block mask that the plan makes needless.
        inputs['attention_mask'] = torch.zeros((1, 1, 1, 1))
    else:
        bounds = torch.tensor([0, *(span.stop for span in spans)], dtype=torch.int32)
        longest = max(span.stop - span.start for span in spans)
        inputs |= {'cu_seq_lens_q': bounds, 'cu_seq_lens_k': bounds, 'max_length_q': longest, 'max_length_k': longest}
        inputs['attention_mask'] = None
    return Laid(inputs, *_gather_units(units), ends=torch.stack(ends), tokens=offset, padding=0)


def _squeeze(positions: Tensor) -> Tensor:
    # (1, rows, length) is the plain form (rows, length); families with several position rows keep all of them.
    return positions[0] if positions.shape[0] == 1 else positions
