"""Reads the rows of a run through its own dataset and measures them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch

from align_anything.algorithms.base import Algorithm
from align_anything.configs.redaction import without_secrets
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import SampleError
from align_anything.core.types import ACTION, CodedMedia, Conversation, Example, Piece, Skipped
from align_anything.datasets.action_statistics import Seen, seen_in
from align_anything.datasets.dataset import ExampleDataset, Remembering, Source
from align_anything.datasets.loader import Loader
from align_anything.datasets.media import decode_conversations
from align_anything.datasets.mixture import StreamedRow, StreamMixture
from align_anything.datasets.sampler import BatchShape, Sampler
from align_anything.datasets.skips import by_kind
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.models.family import FamilySpec
from align_anything.reporting.episodes import animated_episode
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.data import make_dataset, open_run
from align_anything.trainers.runs.dry_run import shape_of
from align_anything.trainers.runs.windows import windows_of

READ_AT_ONCE = 8
STREAMED_ROWS = 1000
SAMPLES = 50
REPLAYS = 3

RowKey = int | StreamedRow


@dataclass(frozen=True)
class RowSize:
    """The tokens of one usable row, all answers together, its media by kind, and whether an answer is truncated.

    Of a model that denoises, `trained` are the draws of noise, and `latents` the shapes of the answers' latents.
    """

    source: str
    tokens: int
    trained: int
    media_tokens: int
    media: dict[str, int]
    truncated: bool = False
    latents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A row to look at: its conversations with decoded media, and what they were encoded to."""

    conversations: list[Conversation]
    example: Example


class Replay(NamedTuple):
    """A whole episode: the row that it is, and an animation of it as a GIF file."""

    source: str
    animation: bytes


@dataclass
class SetSurvey:
    """What is known of one set of rows.

    Attributes:
        name: `training` or `evaluation`.
        total: rows of the set, None for a stream.
        sizes: of the usable rows among those read, in order.
        skipped: the others.
        samples: some usable rows, spread evenly over those read.
        acted: what is done in the rows, where answers are actions.
        replays: a few episodes of them.
    """

    name: str
    total: int | None
    sizes: list[RowSize] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    acted: Seen | None = None
    replays: list[Replay] = field(default_factory=list)

    @property
    def read(self) -> int:
        """How many rows were read."""
        return len(self.sizes) + len(self.skipped)

    def reasons(self) -> list[tuple[str, list[Skipped]]]:
        """Returns the skipped rows by the kind of reason, names and numbers aside, the commonest first."""
        return by_kind(self.skipped)


@dataclass
class Survey:
    """What is known of the data of a run."""

    run: str
    spec: FamilySpec
    max_skipped_ratio: float
    sets: list[SetSurvey]

    @property
    def denoises(self) -> bool:
        """Whether the model writes no tokens."""
        return self.spec.unit != 'token'


def survey(pair: Pair, algorithm: Algorithm, cfgs: RunCfgs, rows: int | None) -> Survey:
    """Reads the first `rows` rows of each set of the run, all when None, as training would.

    Raises as the run would: SettingsError, ModelError, and DataError for data that stop it.
    """
    sources, spec = open_run(cfgs, pair, algorithm)
    sets = []
    for name, opened in (('training', sources.training), ('evaluation', sources.evaluation)):
        if opened:
            data = cfgs.data_cfgs
            reserved = cfgs.model_cfgs.max_new_tokens if algorithm.generates else 0
            dataset = make_dataset(
                *(opened, pair, spec, algorithm, data.train_on),
                reserved=reserved,
                drop_truncated=data.drop_truncated,
                windows=windows_of(cfgs, pair, algorithm, spec),
            )
            sets.append(_survey_set(name, dataset, opened, spec, cfgs, rows))
            if ACTION in pair.writes and sets[-1].total is not None:
                sets[-1].acted = seen_in(dataset, limit=rows)
                sets[-1].replays = list(islice(_replays(dataset), REPLAYS))
    return Survey(f'{pair.name} {algorithm.name}', spec, cfgs.data_cfgs.max_skipped_ratio, sets)


def size_of(example: Example, spec: FamilySpec) -> RowSize:
    """Counts the tokens and media of an Example."""
    pieces = [example.prompt, *(piece for response in example.responses for piece in response.sequences)]
    return RowSize(
        source=cleaned(example.source),
        tokens=len(example),
        trained=sum(int((piece.weights > 0).sum()) for piece in pieces),
        media_tokens=sum(int(_is_media(piece, spec).sum()) for piece in pieces),
        media=dict(sum((_media_in(piece, spec) for piece in pieces), Counter())),
        truncated=any(response.truncated for response in example.responses),
        latents=tuple(shape_of(response) for response in example.responses if LATENTS in response.media),
    )


def cleaned(text: str) -> str:
    """Returns `text` without the credentials that addresses in it may hold."""
    return without_secrets(text)


def _media_in(piece: Piece, spec: FamilySpec) -> Counter[str]:
    parts = [] if spec.codes is None else spec.codes.parts(piece.ids.tolist())
    return Counter(piece.media_counts) + Counter(part.kind for part in parts if isinstance(part, CodedMedia))


def _is_media(piece: Piece, spec: FamilySpec) -> torch.Tensor:
    if spec.unit != 'token':
        return torch.zeros_like(piece.ids, dtype=torch.bool)
    placeholders = torch.isin(piece.ids, torch.tensor(sorted(spec.media_token_ids), dtype=torch.long))
    return placeholders if spec.codes is None else placeholders | spec.codes.is_code(piece.ids)


def _survey_set(
    name: str, dataset: ExampleDataset, sources: list[Source], spec: FamilySpec, cfgs: RunCfgs, limit: int | None
) -> SetSurvey:
    order = _InOrder(dataset, sources, limit)
    result = SetSurvey(name, None if order.streamed else len(dataset))
    loader = Loader(dataset, order, _Measure(spec), cfgs.data_cfgs.num_workers)
    with closing(loader):
        for sizes, skipped in loader.micro_batches(0):
            result.sizes += sizes
            result.skipped += skipped
    dataset.task = remembered = Remembering(dataset.task)
    step = 1 if order.streamed else max(1, result.read // SAMPLES)
    for key in islice(order.keys(), 0, SAMPLES * step, step):
        example = dataset[key]
        if isinstance(example, Example):
            example.source = cleaned(example.source)
            result.samples.append(Sample(remembered.conversations, example))
    return result


def _replays(dataset: ExampleDataset) -> Iterator[Replay]:
    """Whole episodes, however rows are cut."""
    for number in range(min(len(dataset), SAMPLES)):
        conversations = dataset.formatted(number)
        if isinstance(conversations, Skipped):
            continue
        try:
            (decoded,) = decode_conversations(conversations[:1])
        except SampleError:
            continue
        animation = animated_episode(decoded)
        if animation is not None:
            yield Replay(cleaned(dataset.name_of(number)), animation)


class _InOrder(Sampler):
    """The rows as they stand in their sources, the first `limit` of them; a sampler for the Loader."""

    def __init__(self, dataset: ExampleDataset, sources: list[Source], limit: int | None) -> None:
        self.shape = BatchShape(READ_AT_ONCE)
        self.streamed = sources[0].streamed
        self._dataset, self._sources = dataset, sources
        self._limit = STREAMED_ROWS if limit is None and self.streamed else limit

    def keys(self) -> Iterator[RowKey]:
        """Yields what the dataset is indexed by."""
        if self.streamed:
            mixture = StreamMixture([source.rows for source in self._sources], seed=0, shuffle=False, in_turn=True)
            return islice(mixture.rows(0), self._limit)
        return islice(range(len(self._dataset)), self._limit)

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[Any]]:
        """Yields the keys, a few at a time."""
        keys = self.keys()
        while some := list(islice(keys, READ_AT_ONCE)):
            yield some


@dataclass(frozen=True)
class _Measure:
    """In the place of a collator: keeps the sizes, in the worker, and leaves the tensors there."""

    spec: FamilySpec

    def __call__(self, examples: list[Example], skipped: list[Skipped]) -> tuple[list[RowSize], list[Skipped]]:
        reasons = [Skipped(cleaned(record.source), cleaned(record.reason), record.filtered) for record in skipped]
        return [size_of(example, self.spec) for example in examples], reasons
