"""Examples to a Batch, in the data loader's workers: picklable, and without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from align_anything.core.types import Batch, Example, Piece, Skipped
from align_anything.policies.token.layouts import Path, concatenate, lay_flat, lay_padded


class Family(Protocol):
    """What collation needs of a model family (`models.family.FamilySpec` provides it)."""

    pad_token_id: int
    media_token_ids: frozenset[int]
    token_tensor_names: tuple[str, ...]
    bidirectional_media: bool

    def positions(self, ids: Tensor, media: dict[str, Tensor], token_tensors: dict[str, Tensor]) -> Tensor: ...

    def merge_media(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]: ...

    def dummy(self, kind: str) -> Piece: ...


@dataclass(frozen=True)
class TokenCollator:
    """Lays Examples out for a token policy.

    Attributes:
        spec: the model's family.
        layout: `padded`, `packed` or `shared_prefix`.
        segmented: whether the row layouts use attention by segment, or flash-attention with variable lengths.
        dummy_kinds: media kinds that every batch must contain, so that all ranks run the same towers. A batch
            without one gets the family's smallest media item at the end of its shortest sequence, with weight zero,
            where nothing that is scored can see it.
    """

    spec: Family
    layout: str
    segmented: bool = True
    dummy_kinds: tuple[str, ...] = ()

    def __call__(self, examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> Batch:
        """Returns the Batch of these Examples; of none, a batch that computes and trains nothing."""
        placed = list(examples) or [self._filler()]
        paths, owners, carried = self._paths(placed)
        known = [response.known for example in placed for response in example.responses]
        shared = [name for name in known[0] if all(name in numbers for numbers in known)]
        unmatched = [
            replace(item, responses=[item.unmatched], unmatched=None) for item in placed if item.unmatched is not None
        ]
        counts = sum((Counter(piece.media_counts) for piece in carried), Counter())
        if self.layout == 'padded':
            laid = lay_padded(paths, self.spec.pad_token_id)
        else:
            laid = lay_flat(
                paths,
                share=self.layout == 'shared_prefix',
                segmented=self.segmented,
                bidirectional=self.spec.bidirectional_media,
            )
        return Batch(
            inputs={**laid.inputs, **self.spec.merge_media([piece.media for piece in carried])},
            score_index=laid.score_index,
            targets=laid.targets,
            segments=laid.segments,
            weights=laid.weights,
            ends=laid.ends,
            num_responses=len(paths),
            examples_of_responses=torch.tensor(owners),
            sources=[example.source for example in placed],
            metas=[example.meta for example in placed],
            skipped=list(skipped),
            unmatched=self(unmatched) if unmatched else None,
            known={name: torch.cat([numbers[name] for numbers in known]) for name in shared},
            stats={
                'examples': len(examples),
                'tokens': laid.tokens,
                'padding': laid.padding,
                'units': len(laid.targets),
                **{f'{kind}s': number for kind, number in counts.items()},
            },
        )

    def _filler(self) -> Example:
        piece = Piece(torch.full((2,), self.spec.pad_token_id), torch.zeros(2))
        response = Piece(piece.ids.clone(), piece.weights.clone())
        return Example(piece, [response], source='(empty micro-batch)')

    def _paths(self, examples: Sequence[Example]) -> tuple[list[Path], list[int], list[Piece]]:
        lists: list[list[Piece]] = []
        owners: list[int] = []
        for number, example in enumerate(examples):
            for response in example.responses:
                lists.append([example.prompt, response])
                owners.append(number)
        shortest = min(range(len(lists)), key=lambda index: sum(map(len, lists[index])))
        for kind in self.dummy_kinds:
            if not any(piece.media_counts.get(kind) for pieces in lists for piece in pieces):
                lists[shortest].append(self.spec.dummy(kind))

        paths = []
        shared = self.layout == 'shared_prefix'
        carried: list[Piece] = []
        for index, (pieces, owner) in enumerate(zip(lists, owners, strict=True)):
            ids, weights, token_tensors = concatenate(pieces, self.spec.token_tensor_names)
            merged = self.spec.merge_media([piece.media for piece in pieces if piece.media])
            paths.append(
                Path(
                    prompt=owner,
                    prefix_length=len(pieces[0]),
                    end=len(pieces[0]) + len(pieces[1]),
                    ids=ids,
                    positions=self.spec.positions(ids, merged, token_tensors),
                    weights=weights,
                    is_media=self._is_media(ids),
                    token_tensors=token_tensors,
                )
            )
            # The prompt's media are encoded once when its tokens stand in the row once.
            prompt_repeats = shared and index > 0 and owners[index - 1] == owner
            carried.extend(piece for piece in (pieces[1:] if prompt_repeats else pieces) if piece.media)
        return paths, owners, carried

    def _is_media(self, ids: Tensor) -> Tensor:
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for token in self.spec.media_token_ids:
            mask |= ids == token
        return mask
