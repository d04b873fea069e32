"""What a reference model thinks of responses, read from where it was stored before training."""

from __future__ import annotations

from typing import Any, Protocol

from align_anything.core.store import Identified, TensorStore, identity
from align_anything.core.types import Example, Piece, Skipped
from align_anything.datasets.dataset import Source

SCORES = 'scores'
"""The tensor of an entry: log-probabilities of a response's trained tokens, `(units,)` float32."""


def scored_responses(example: Example) -> list[Piece]:
    """Returns what a reference scores of `example`: its responses, and its unmatched one at the end if it has one."""
    return [*example.responses, *([] if example.unmatched is None else [example.unmatched])]


def reference_keys(store: TensorStore, example: Example) -> list[str]:
    """Returns a key for each of the `scored_responses`, by what the model reads: prompt, response, media, weights."""
    # Once, however many responses there are: its media may be large.
    prompt = Identified(identity(_read(example.prompt)))
    return [store.key(prompt, _read(response)) for response in scored_responses(example)]


def _read(piece: Piece) -> dict[str, Any]:
    read = {'ids': piece.ids, 'weights': piece.weights, **piece.token_tensors, **piece.media}
    if piece.prefix_length is None and not piece.earlier:
        return read
    return {**read, 'prefix_length': piece.prefix_length, 'earlier': [_read(other) for other in piece.earlier]}


class Indexed(Protocol):
    """A dataset of Examples, such as `ExampleDataset`."""

    sources: list[Source]

    def __getitem__(self, index: Any) -> Example | Skipped: ...


class Referenced:
    """A dataset whose Examples bear the scores that the reference gave to their responses before training.

    A row that has none is left out: it is not the one that was scored.
    """

    def __init__(self, dataset: Indexed, store: TensorStore) -> None:
        self._dataset, self._store = dataset, store
        self.sources = dataset.sources

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Example | Skipped:
        example = self._dataset[index]
        if isinstance(example, Skipped):
            return example
        for key, piece in zip(reference_keys(self._store, example), scored_responses(example), strict=True):
            entry = self._store.get(key)
            if entry is None:
                return Skipped(
                    example.source,
                    f'the reference has no scores of it in {self._store.folder}: the row, or a file that it names, has '
                    'changed since they were made, or they were deleted. Start the run again.',
                )
            piece.per_unit['reference'] = entry.tensors[SCORES]
        return example
