"""Examples to a Batch, in the data loader's workers: picklable, and without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch

from align_anything.core.types import Batch, Cost, Example, Piece, Skipped
from align_anything.models.codes import CHUNK, TEXT
from align_anything.models.encoding import join, truncate
from align_anything.models.family import FamilySpec
from align_anything.policies.token.layouts import TokenSequence, pack, pad


def work_in_tokens(example: Example, shared: bool) -> tuple[float, float]:
    """The computation of an Example where only its tokens are counted, and that of towers, which is none."""
    return float(len(example)), 0.0


@dataclass(frozen=True)
class TokenCollator:
    """Lays Examples out for a token policy.

    Attributes:
        spec: the model's family.
        layout: `padded`, `packed` or `shared_prefix`.
        kinds: kinds of media that the Examples may hold.
        segmented: whether the row layouts use attention by segment, or flash-attention with variable lengths.
        work: how much computation an Example takes, whose prompt is shared or not, and how much of it in the towers.
        dummy_kinds: media kinds that every batch must contain, so that all ranks run the same towers. A batch
            without one gets the family's smallest media item at the end of its shortest sequence, with weight zero,
            where nothing that is scored can see it.
        guidance: how far scores of codes are led from what follows the unconditional prompt to what follows the prompt
            itself; 1 is the latter alone. Otherwise each response stands behind both.
        ranks_per_row: how many ranks share each row, which is filled up to a multiple of it.
    """

    spec: FamilySpec
    layout: str
    kinds: tuple[str, ...] = ()
    segmented: bool = True
    dummy_kinds: tuple[str, ...] = ()
    work: Callable[[Example, bool], tuple[float, float]] = work_in_tokens
    guidance: float = 1.0
    ranks_per_row: int = 1

    @property
    def pads(self) -> bool:
        """Whether each row takes as many tokens as the longest one."""
        return self.layout == 'padded'

    def cost(self, example: Example) -> Cost:
        """The tokens of an Example in the layout, and its computation."""
        passes = [example]
        if self._guided(example):
            passes.append(replace(example, prompt=example.unconditional))
        work, towers = map(sum, zip(*(self.work(one, self.layout == 'shared_prefix') for one in passes), strict=True))
        return self._extent(example)._replace(work=work, towers=towers)

    def size(self, examples: Sequence[Example]) -> int:
        """Tokens that a micro-batch takes in the layout: prompts once where responses share them, and with padding.

        Those of dummy media are left out.
        """
        return reduce(Cost.beside, map(self._extent, examples), Cost(0, 0)).size

    def _extent(self, example: Example) -> Cost:
        own = Cost(*self._rows(example.prompt, example.responses))
        if self._guided(example):
            own = own.beside(Cost(*self._rows(example.unconditional, example.responses)))
        rows, length = own.rows, own.length
        if example.unmatched is None:
            return own
        unmatched_rows, unmatched_length = self._rows(example.prompt, [example.unmatched])
        return Cost(rows, length, unmatched_rows=unmatched_rows, unmatched_length=unmatched_length)

    def _guided(self, example: Example) -> bool:
        return self.guidance != 1 and example.unconditional is not None

    def _rows(self, prompt: Piece, responses: Sequence[Piece]) -> tuple[int, int]:
        """How many rows as `Cost` counts them, and the length of the longest."""
        pieces = [piece for response in responses for piece in response.sequences]
        if self.layout == 'shared_prefix':
            return len(prompt) + sum(map(len, pieces)), 1
        lengths = [_prefix_length(prompt, piece) + len(piece) for piece in pieces]
        return (len(lengths), max(lengths, default=0)) if self.pads else (sum(lengths), 1)

    def __call__(self, examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> Batch:
        """Returns the Batch of these Examples; of none, a batch that computes and trains nothing."""
        present = list(examples) or [self._filler()]
        sequences, carried = self._sequences(present)
        per_unit = [response.per_unit for example in present for response in example.responses]
        shared = [name for name in per_unit[0] if all(name in values for values in per_unit)]
        unmatched = [
            replace(item, responses=[item.unmatched], unmatched=None) for item in present if item.unmatched is not None
        ]
        counts = sum((Counter(piece.media_counts) for piece in carried), Counter())
        if self.pads:
            rows = pad(sequences, self.spec.pad_token_id)
        else:
            rows = pack(
                sequences,
                share=self.layout == 'shared_prefix',
                segmented=self.segmented,
                bidirectional=self.spec.bidirectional_media,
                multiple=self.ranks_per_row,
                pad_token_id=self.spec.pad_token_id,
            )
        # What fills up an empty micro-batch is no token of the run.
        rows.inputs.distinct &= bool(examples)
        if self.guidance == 1:
            rows.inputs.unconditional = None
        else:
            rows.inputs.guidance = self.guidance
            codes = self.spec.codes.set_of(rows.inputs.targets) != TEXT
            rows.inputs.unconditional = torch.where(codes, rows.inputs.unconditional, rows.inputs.score_index)
        rows.inputs.arguments |= self.spec.merge_media([piece.media for piece in carried])
        return Batch(
            inputs=rows.inputs,
            segments=rows.segments,
            weights=rows.weights,
            num_responses=len(per_unit),
            examples_of_responses=torch.tensor(
                [number for number, example in enumerate(present) for _ in example.responses]
            ),
            sources=[example.source for example in present],
            metas=[example.meta for example in present],
            skipped=list(skipped),
            unmatched=self(unmatched) if unmatched else None,
            per_unit={name: torch.cat([values[name] for values in per_unit]) for name in shared},
            kinds={} if self.spec.codes is None else self.spec.codes.by_kind(rows.inputs.targets),
            stats={
                'examples': len(examples),
                # What stands in for rows is computed, but is nobody's.
                'tokens': rows.tokens if examples else 0,
                'padding': rows.padding if examples else 0,
                'units': len(rows.inputs.targets),
                'distinct_tokens': int(rows.inputs.distinct.sum()),
                'truncated': sum(response.truncated for example in present for response in example.responses),
                **{f'{kind}s': number for kind, number in counts.items()},
            },
        )

    def _filler(self) -> Example:
        piece = Piece(torch.full((2,), self.spec.pad_token_id), torch.zeros(2))
        response = Piece(piece.ids.clone(), piece.weights.clone())
        return Example(piece, [response], source='(empty micro-batch)')

    def _sequences(self, examples: Sequence[Example]) -> tuple[list[TokenSequence], list[Piece]]:
        lists: list[list[Piece]] = []
        owners: list[tuple[int, int, bool]] = []
        responses = [(number, response) for number, example in enumerate(examples) for response in example.responses]
        for index, (number, response) in enumerate(responses):
            for piece in response.sequences:
                lists.append([_beginning(examples[number].prompt, piece), piece])
                owners.append((number, index, False))
                if self._guided(examples[number]):
                    lists.append([examples[number].unconditional, piece])
                    owners.append((len(examples) + number, index, True))
        shortest = min(range(len(lists)), key=lambda index: sum(map(len, lists[index])))
        for kind in self.dummy_kinds:
            if not any(piece.media_counts.get(kind) for pieces in lists for piece in pieces):
                lists[shortest].append(self.spec.dummy(kind))

        sequences = []
        shared = self.layout == 'shared_prefix'
        carried: list[Piece] = []
        with_prompt: set[int] = set()
        media_ids = torch.tensor(sorted(self.spec.media_token_ids), dtype=torch.long)
        for pieces, (owner, response, guides) in zip(lists, owners, strict=True):
            whole = join(pieces, self.spec.merge_media)
            token_tensors = {
                name: whole.token_tensors.get(name, self.spec.blank(name, len(whole)))
                for name in self.spec.token_tensor_names
            }
            chunk = whole.token_tensors.get(CHUNK)
            sequences.append(
                TokenSequence(
                    response=response,
                    prompt=owner,
                    prefix_length=len(pieces[0]),
                    end=len(pieces[0]) + len(pieces[1]),
                    ids=whole.ids,
                    positions=self.spec.positions(whole.ids, whole.media, token_tensors),
                    weights=whole.weights,
                    is_media=torch.isin(whole.ids, media_ids),
                    token_tensors=token_tensors,
                    guides=guides,
                    read=None if chunk is None else self.spec.codes.read_as(whole.ids, chunk),
                    chunk=chunk,
                )
            )
            # The prompt's media are encoded once when its tokens stand in the row once.
            prompt_repeats = shared and owner in with_prompt
            carried.extend(piece for piece in (pieces[1:] if prompt_repeats else pieces) if piece.media)
            if len(pieces[0]):
                with_prompt.add(owner)
        return sequences, carried


def _prefix_length(prompt: Piece, piece: Piece) -> int:
    return len(prompt) if piece.prefix_length is None else piece.prefix_length


def _beginning(prompt: Piece, piece: Piece) -> Piece:
    """What `piece` continues of the prompt. All of its media stand in there, or it continues nothing of it."""
    length = _prefix_length(prompt, piece)
    if length == len(prompt):
        return prompt
    return truncate(prompt, length) if length else Piece(prompt.ids[:0], prompt.weights[:0])
