"""From the data settings to loaders."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.online import Online
from align_anything.configs.actions import ActionCfgs
from align_anything.configs.schema import DataCfgs, RunCfgs
from align_anything.core.actions import ActionSpace
from align_anything.core.buckets import histogram
from align_anything.core.errors import DataError, ModelError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.types import ACTION, NEEDS, Batch, Conversation, Example, MediaKind, Piece, Skipped
from align_anything.datasets.action_datasets import by_dataset, datasets_of
from align_anything.datasets.buckets import BucketSampler
from align_anything.datasets.budget import BudgetSampler, RowCosts, StreamBudgetSampler
from align_anything.datasets.dataset import ExampleDataset, Source, SupervisedTask, Task
from align_anything.datasets.filling import Filling
from align_anything.datasets.loader import Loader
from align_anything.datasets.measuring import (
    measure_buckets,
    measure_rows,
    measure_stream,
    size_of_answer,
)
from align_anything.datasets.mixture import Mixture, StreamMixture
from align_anything.datasets.preference import AnswersTask, PreferenceTask, UnpairedTask
from align_anything.datasets.prompt_dropout import PromptDropout
from align_anything.datasets.prompts import PromptTask
from align_anything.datasets.reference_scores import Indexed
from align_anything.datasets.sample_cache import SampleCache
from align_anything.datasets.sampler import BatchShape, IndexSampler, Sampler, StreamSampler
from align_anything.datasets.source_loading import load_sources, source_names
from align_anything.datasets.windowing import RandomWindows
from align_anything.datasets.windows import Windows
from align_anything.models.adapter import check_continuation, find_adapter
from align_anything.models.family import FamilySpec
from align_anything.models.fingerprint import encoding_fingerprint
from align_anything.models.rendering import TrainOn, first_differing_turn, require_written
from align_anything.models.spec import Spec
from align_anything.policies.base import Collator
from align_anything.trainers.loops.splitting import steps_of_rollout
from align_anything.trainers.pairs import PAIRS, Pair
from align_anything.trainers.runs.action_spaces import acting
from align_anything.trainers.runs.row_environments import check_row_environments
from align_anything.trainers.runs.settings import codes_of_run, data_ranks, spec_of
from align_anything.trainers.runs.windows import sampler_of_all_windows, windows_of

logger = get_logger(__name__)

Collate = Callable[..., Batch]
Buckets = Sequence[Hashable | None]


class Encoding(Protocol):
    """What tasks need of a `FamilySpec`."""

    max_length: int
    encode: Callable[..., Example]
    encode_group: Callable[..., Example]
    encode_prompt: Callable[..., Piece]


@dataclass(frozen=True)
class Sources:
    """The opened sources of a run; `evaluation` is empty when nothing is evaluated."""

    training: list[Source]
    evaluation: list[Source]


def open_sources(cfgs: RunCfgs, writes: Set[MediaKind] = frozenset(), acts: bool = False) -> Sources:
    """Opens every dataset of the run, whose answers hold media of the kinds in `writes`.

    Where responses are episodes (`acts`) their environment is given all columns of a row.

    Raises DataError for sources or templates that cannot be used.
    """
    data, cache_dir = cfgs.data_cfgs, cfgs.logger_cfgs.cache_dir
    training = load_sources_of(data, 'train', cache_dir, streaming=data.streaming, writes=writes)
    evaluate = data.eval_datasets is not None and cfgs.train_cfgs.eval_strategy != 'no'
    held_out = load_sources_of(data, 'eval', cache_dir, False, writes) if evaluate else []
    return Sources(*([replace(source, keeps_columns=acts) for source in own] for own in (training, held_out)))


def open_run(
    cfgs: RunCfgs, pair: Pair, algorithm: Algorithm, space: ActionSpace | None = None
) -> tuple[Sources, FamilySpec]:
    """Opens the data of the run and reads the rules of its checkpoint; no weights. A run goes on in its own `space`.

    Raises SettingsError, DataError or ModelError when they cannot be used, or do not suit the pair or the algorithm.
    """
    acts = algorithm.generates and cfgs.environment_cfgs.environment is not None
    sources = open_sources(cfgs, pair.writes, acts)
    probe(sources, pair, algorithm, cfgs.data_cfgs.train_on)
    if algorithm.generates:
        check_row_environments([*sources.training, *sources.evaluation], cfgs.environment_cfgs)
    if algorithm.trains:
        check_continuation(find_adapter(cfgs.model_cfgs.model_name_or_path), cfgs.lora_cfgs)
    spec = spec_of(cfgs)
    if ACTION in pair.writes:
        rows = unread_dataset(sources.training, pair, algorithm, cfgs.data_cfgs.train_on)
        acting(cfgs, spec, algorithm, rows, space)
        sources = _with_statistics(sources, spec.space, cfgs.action_cfgs, algorithm)
    spec.codes = codes_of_run(cfgs, pair, algorithm, spec)
    require_met(algorithm, spec)
    require_readable(pair, spec, cfgs.model_cfgs.model_name_or_path)
    if algorithm.scores == 'tokens':
        require_writable(pair, spec, cfgs.model_cfgs.model_name_or_path)
    if algorithm.scores == 'responses':
        require_judging(pair, spec, cfgs.model_cfgs.model_name_or_path)
    return sources, spec


def _with_statistics(sources: Sources, space: ActionSpace, asked: ActionCfgs, algorithm: Algorithm) -> Sources:
    """The sources with the datasets whose statistics hold for them in a space that has those of all it learns from."""
    if algorithm.task == 'prompt':
        return sources
    names = datasets_of(sources.training, space, asked, algorithm.task == 'supervised')
    held_out = datasets_of(sources.evaluation, space, asked, False)
    return Sources(by_dataset(sources.training, names, space), by_dataset(sources.evaluation, held_out, space))


def load_sources_of(
    data: DataCfgs, purpose: str, cache_dir: str | None, streaming: bool, writes: Set[MediaKind] = frozenset()
) -> list[Source]:
    """Opens the datasets of a purpose: `train`, `eval`, or in runs that have such data `ptx`."""
    keys = ('template', 'template_kwargs', 'name', 'split', 'size', 'data_files', 'optional_args')
    return load_sources(
        in_folder(data.data_dir, getattr(data, f'{purpose}_datasets')),
        **{key: getattr(data, f'{purpose}_{key}') for key in keys},
        image_folder=data.image_folder,
        video_folder=data.video_folder,
        audio_folder=data.audio_folder,
        media_options=media_options(data),
        cache_bytes=data.media_cache_mb * 2**20,
        streaming=streaming,
        cache_dir=cache_dir,
        writes=writes,
    )


def in_folder(folder: str | None, names: str | Sequence[str]) -> str | list[str]:
    """Returns names of datasets, those that are relative in a folder, where there is one."""
    if isinstance(names, str):
        return names if folder is None else os.path.join(folder, names)
    return [in_folder(folder, name) for name in names]


def media_options(data: DataCfgs) -> dict[str, dict[str, Any]]:
    """What the settings ask of decoding each kind of media."""
    audio = {'max_seconds': data.max_audio_seconds, 'long_audio': data.long_audio}
    frames = {
        key: getattr(data, key)
        for key in ('num_frames', 'fps', 'min_frames', 'max_frames', 'max_frame_pixels', 'max_video_pixels')
    }
    urls = {'allow_urls': data.allow_urls}
    return {
        'image': urls,
        'video': {**urls, **frames, **audio, 'audio': data.audio_in_video},
        'audio': {**urls, **audio},
    }


TASKS: Mapping[str, Callable[[Algorithm, str, Encoding, int], Task]] = {
    'supervised': lambda algorithm, train_on, encoding, reserved: SupervisedTask(encoding.encode, train_on),
    'preference': lambda algorithm, train_on, encoding, reserved: PreferenceTask(
        encoding.encode_group, train_on, algorithm.meta_keys, algorithm.scores != 'tokens', algorithm.soft_labels
    ),
    'unpaired': lambda algorithm, train_on, encoding, reserved: UnpairedTask(encoding.encode_group),
    'answers': lambda algorithm, train_on, encoding, reserved: AnswersTask(encoding.encode_group),
    'prompt': lambda algorithm, train_on, encoding, reserved: PromptTask(
        encoding.encode_prompt, encoding.max_length - reserved
    ),
}


def make_task(algorithm: Algorithm, train_on: str, encoding: Encoding, reserved: int = 0) -> Task:
    """What the algorithm wants of a row; with a prompt, so many tokens are `reserved` for a response.

    Raises SettingsError for `train_on` all, which only supervision can mean.
    """
    if train_on == 'all' and algorithm.task != 'supervised':
        raise SettingsError(
            [f"data_cfgs.train_on: 'all' trains prompts, but {algorithm.name} compares answers. Leave it out."]
        )
    return TASKS[algorithm.task](algorithm, train_on, encoding, reserved)


def make_dataset(
    sources: list[Source],
    pair: Pair,
    spec: FamilySpec,
    algorithm: Algorithm,
    train_on: str,
    sample_cache_dir: str | None = None,
    reserved: int = 0,
    drop_truncated: bool = False,
    windows: Windows | None = None,
) -> ExampleDataset:
    """The rows of `sources` as Examples of the family, prompts with `reserved` tokens left for a response.

    Episodes are cut by `windows`.

    Raises ModelError for audio in videos that it cannot hear, SettingsError when the cache cannot be written to.
    """
    with_audio = any(source.media_options.get('video', {}).get('audio') for source in sources)
    if with_audio and not (spec.reads_audio_in_video and 'audio' in spec.reads):
        raise ModelError(
            f"data_cfgs.audio_in_video is on, but models of type '{spec.model_type}' do not hear the audio of a video: "
            'switch it off, or choose a checkpoint that does, such as an Omni thinker'
        )
    heard = {'audio': {'rate': spec.audio_rate}, 'video': {'rate': spec.audio_rate}}
    task = make_task(algorithm, train_on, spec, reserved)
    kept = None if sample_cache_dir is None else SampleCache(sample_cache_dir, task, encoding_fingerprint(spec))
    kinds = kinds_of(pair, algorithm)
    shown = _shown(pair, algorithm)
    return ExampleDataset(sources, task, pair.name, kinds, heard, kept, drop_truncated, windows=windows, shown=shown)


def _shown(pair: Pair, algorithm: Algorithm) -> bool:
    """Whether an environment shows what there is to see, as it does to policies that act."""
    return ACTION in pair.writes and algorithm.task == 'prompt'


def kinds_of(pair: Pair, algorithm: Algorithm) -> frozenset[MediaKind]:
    """The kinds of media that rows may hold: where answers are generated, those of prompts, and what was done there."""
    return pair.reads | (pair.writes & {ACTION} if algorithm.task == 'prompt' else pair.writes)


def probed(
    sources: list[Source], cfgs: RunCfgs, pair: Pair, spec: FamilySpec, algorithm: Algorithm, reserved: int = 0
) -> ExampleDataset:
    """The rows of `sources` as `make_dataset` makes them, the first of which have been encoded.

    Raises DataError when they cannot be, and as `make_dataset` does.
    """
    data = cfgs.data_cfgs

    def made(cache_dir: str | None) -> ExampleDataset:
        wanted = sources, pair, spec, algorithm, data.train_on, cache_dir, reserved
        windows = windows_of(cfgs, pair, algorithm, spec)
        return make_dataset(*wanted, drop_truncated=data.drop_truncated, windows=windows)

    # Before codes of media are made, they are encoded by a guess, which is not to be kept.
    made(None if spec.codes is not None else data.sample_cache_dir).probe(final=True)
    return made(data.sample_cache_dir)


def probe(sources: Sources, pair: Pair, algorithm: Algorithm, train_on: str) -> None:
    """Looks at the first rows of every source before anything heavy is loaded. Raises DataError when none is usable."""
    for opened in filter(None, (sources.training, sources.evaluation)):
        unread_dataset(opened, pair, algorithm, train_on).probe()


def unread_dataset(sources: list[Source], pair: Pair, algorithm: Algorithm, train_on: str) -> ExampleDataset:
    """The rows of `sources` while no checkpoint is read: formatted and decoded, but not encoded."""
    task = make_task(algorithm, train_on, _Unread(pair))
    learnt = algorithm.task != 'prompt' and not pair.writes_text
    answers = pair.writes if learnt else frozenset()
    kinds = kinds_of(pair, algorithm)
    return ExampleDataset(sources, task, pair.name, kinds, answers=answers, shown=_shown(pair, algorithm))


@dataclass(frozen=True)
class _Unread:
    """Stands for the family while its checkpoint is not read: knows what answers may hold, and writes no tokens."""

    pair: Pair
    max_length: ClassVar[int] = 0

    def encode(self, conversation: Conversation, train_on: TrainOn) -> Example:
        return self.encode_group([conversation], train_on, 0)

    def encode_group(
        self, conversations: Sequence[Conversation], train_on: TrainOn, start: int | None = None, judged: bool = False
    ) -> Example:
        start = first_differing_turn(conversations) if start is None else start
        for conversation in conversations if not judged else ():
            require_written(conversation, train_on, start, self.pair.writes, f"the pair '{self.pair.name}' writes")
        # One token for each answer, which tells them apart as the tasks ask.
        responses = [Piece(torch.tensor([number]), torch.ones(1)) for number in range(len(conversations))]
        return Example(self.encode_prompt(conversations[0]), responses)

    def encode_prompt(self, messages: Conversation) -> Piece:
        return Piece(torch.tensor([], dtype=torch.long), torch.tensor([]))


def training_sampler(
    sources: list[Source],
    dataset: ExampleDataset,
    collate: Collator,
    cfgs: RunCfgs,
    costs: RowCosts | None = None,
    *,
    buckets: Buckets | None = None,
    rows: tuple[int, int] | None = None,
) -> Sampler:
    """Which rows go into which micro-batch of this rank, reshuffled each epoch.

    `rows` are how many a micro-batch has and how many micro-batches a step, if not those of `train_cfgs`; they are not
    filled by tokens.

    With `max_length_per_batch`, micro-batches are filled to it by the `costs` of the rows, which streams measure as
    they go; `collate` says what they take. With `buckets` and without that a micro-batch holds rows of one of them.
    """
    train, data = cfgs.train_cfgs, cfgs.data_cfgs
    shape = BatchShape(
        *(rows or (train.per_device_train_batch_size, train.gradient_accumulation_steps)), *data_ranks(cfgs)
    )
    mixing: dict[str, Any] = {'weights': data.train_weights, 'in_turn': data.train_mixing == 'round_robin'}
    budget = train.max_length_per_batch
    # Samples of several sizes are filled up to the longest of their micro-batch.
    grouped = train.group_by_length or collate.spec.unit == 'denoising step'
    filling = None if budget is None or rows is not None else Filling(shape, budget, grouped)
    windows = dataset.windows
    if windows is not None and windows.kind == 'all':
        return sampler_of_all_windows(dataset, windows, costs, filling, shape, cfgs)
    cut = (lambda sampler: sampler) if windows is None else partial(RandomWindows, windows=windows)
    if not data.streaming:
        mixture = Mixture(dataset.sizes, train.seed, **mixing)
        if buckets is not None and filling is None:
            return BucketSampler(mixture, buckets, shape)
        return cut(IndexSampler(mixture, shape) if costs is None else BudgetSampler(mixture, costs, filling))
    if len(sources) > 1 and data.train_weights is None and data.train_mixing == 'concatenate':
        logger.warning(
            'the %d streams are read one after the other, so their rows mix only where one ends and the next begins: '
            'set data_cfgs.train_mixing: round_robin, or give train_weights.',
            len(sources),
        )
    stream = StreamMixture([source.rows for source in sources], train.seed, **mixing)
    if filling is None:
        return cut(StreamSampler(stream, shape))
    return cut(StreamBudgetSampler(stream, partial(measure_stream, dataset, collate.cost, data.num_workers), filling))


def row_costs(dataset: ExampleDataset, collate: Collator, cfgs: RunCfgs) -> tuple[RowCosts | None, list[Skipped]]:
    """What every row takes, when the settings ask for micro-batches by tokens, and the rows that cannot be used.

    None for streams, which are measured as they are read.
    """
    if cfgs.train_cfgs.max_length_per_batch is None or cfgs.data_cfgs.streaming:
        return None, []
    return measure_rows(dataset, collate.cost, cfgs.data_cfgs.num_workers)


def row_buckets(dataset: ExampleDataset, spec: Spec, cfgs: RunCfgs) -> tuple[Buckets | None, list[Skipped]]:
    """The size that the medium of every row is brought to, by a look at its file, and the rows that cannot be used.

    None where all are brought to one.
    """
    if spec.unit == 'token' or not cfgs.diffusion_cfgs.aspect_buckets:
        return None, []
    found, unusable = measure_buckets(
        dataset, lambda conversations: spec.bucket_of(size_of_answer(conversations)), cfgs.data_cfgs.num_workers
    )
    logger.info('rows by size:\n%s', histogram(found))
    budget = cfgs.train_cfgs.max_length_per_batch
    if budget is not None:
        logger.info('micro-batches filled to %d tokens: %s', budget, spec.sizes_at_once)
    return found, unusable


def total_steps(cfgs: RunCfgs, sampler: Sampler) -> int:
    """Optimizer steps of the run: `max_steps`, else those of all epochs, rounded up within the last.

    Raises DataError for an endless stream.
    """
    train = cfgs.train_cfgs
    if train.max_steps is not None:
        return train.max_steps
    steps = [sampler.steps_in(epoch) for epoch in range(math.ceil(train.epochs))]
    if None in steps:
        raise DataError('a stream has no known length: set train_cfgs.max_steps.')
    whole = math.floor(train.epochs)
    # Rounded first: a tenth of thirty steps is three, and in floating point a little more.
    return sum(steps[:whole]) + sum(math.ceil(round((train.epochs - whole) * last, 6)) for last in steps[whole:])


def prompt_sampler(
    sources: Sources, dataset: ExampleDataset, collate: Collator, cfgs: RunCfgs, algorithm: Online
) -> tuple[Sampler, int]:
    """Which prompts each rollout has, and the optimizer steps of the run: `max_steps`, else those of all epochs."""
    rows = (algorithm.per_device_prompt_batch_size, 1)
    sampler = training_sampler(sources.training, dataset, collate, cfgs, rows=rows)
    if cfgs.train_cfgs.max_steps is not None:
        return sampler, cfgs.train_cfgs.max_steps
    return sampler, total_steps(cfgs, sampler) * steps_of_rollout(cfgs, algorithm)


def training_loader(dataset: Indexed, sampler: Sampler, collate: Collate, cfgs: RunCfgs) -> Loader:
    """The loader of this rank's training micro-batches; of several sources, they tell how much each gave."""
    data = cfgs.data_cfgs
    if data.prompt_dropout:
        sampler = PromptDropout(sampler, data.prompt_dropout, cfgs.train_cfgs.seed)
    names = source_names(dataset.sources)
    counting = Counting(collate, names) if len(names) > 1 else collate
    return Loader(dataset, sampler, counting, data.num_workers)


@dataclass(frozen=True)
class Counting:
    """A collator that adds to the `stats` of each Batch how many Examples and tokens came from each source."""

    collate: Collate
    names: tuple[str, ...]

    def __call__(self, examples: list[Example], skipped: list[Skipped]) -> Batch:
        batch = self.collate(examples, skipped)
        for number, name in enumerate(self.names):
            own = [example for example in examples if example.source_index == number]
            batch.stats[f'samples/{name}'] = len(own)
            batch.stats[f'tokens/{name}'] = sum(map(len, own))
        return batch


def loader_in_order(
    dataset: Indexed,
    sizes: Sequence[int],
    batch_size: int,
    collate: Collate,
    cfgs: RunCfgs,
    buckets: Buckets | None = None,
) -> Loader:
    """The loader of this rank's share of all rows, in the order of the rows, for evaluation and the like.

    With `buckets` a micro-batch holds rows of one of them.
    """
    shape, mixture = (
        BatchShape(batch_size, 1, *data_ranks(cfgs)),
        Mixture(sizes, cfgs.train_cfgs.seed, shuffle=False),
    )
    sampler = IndexSampler(mixture, shape) if buckets is None else BucketSampler(mixture, buckets, shape)
    return Loader(dataset, sampler, collate, cfgs.data_cfgs.num_workers)


NEED_WORDS = {
    'score': 'a number that is better when it is higher',
    'transition': 'the log-density of a transition that was sampled',
    'probability': 'the log-probability of one choice among finitely many',
}


def require_met(algorithm: Algorithm, spec: Spec) -> None:
    """Raises SettingsError when the algorithm needs more of a unit than policies of the family give, or asks for what
    such units have not.
    """
    if NEEDS.index(algorithm.needs) > NEEDS.index(spec.meets):
        raise SettingsError(
            [
                f'{algorithm.name} needs of each unit {NEED_WORDS[algorithm.needs]}, but models of type '
                f"'{spec.model_type}' give {NEED_WORDS[spec.meets]}: choose another algorithm, or leave out the "
                'setting that asks for it.'
            ]
        )
    if problems := algorithm.problems_with(spec.meets):
        raise SettingsError([f"{algorithm.name} of models of type '{spec.model_type}': {text}" for text in problems])


def require_readable(pair: Pair, spec: Spec, model: str) -> None:
    """Raises ModelError when the model cannot read what the pair puts into conversations."""
    _require_readable(pair, spec, model, spec.reads)


def require_judging(pair: Pair, spec: Spec, model: str) -> None:
    """Raises ModelError when the model cannot read the conversations of the pair with their answers."""
    _require_readable(pair.judged, spec, model, spec.reads | spec.emits)


def _require_readable(pair: Pair, spec: Spec, model: str, readable: Set[MediaKind]) -> None:
    missing = pair.missing_from(readable)
    if missing:
        others = ', '.join(name for name, other in PAIRS.items() if not other.missing_from(spec.reads))
        raise ModelError(
            f"{model} (model_type '{spec.model_type}') takes no {', '.join(missing)}, which the pair '{pair.name}' is "
            f'about. Choose a checkpoint that does, or a pair that this one can read: {others}.'
        )


def require_writable(pair: Pair, spec: Spec, model: str) -> None:
    """Raises ModelError when the model cannot learn to write what the pair has answers made of."""
    missing = pair.unwritten_by(spec.emits)
    if missing:
        raise ModelError(
            f"{model} (model_type '{spec.model_type}') writes no {', '.join(missing)}, which the pair '{pair.name}' is "
            'about. Choose a checkpoint that does, a pair that writes text alone, or give a language model such tokens '
            'with align-anything add-media-tokens.'
        )
