"""From the data settings to loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from align_anything.algorithms.base import Algorithm
from align_anything.configs.schema import DataCfgs, RunCfgs
from align_anything.core.distributed import rank, world_size
from align_anything.core.errors import DataError, ModelError, SettingsError
from align_anything.core.types import Batch, Example, Skipped
from align_anything.datasets.budget import BudgetSampler, RowCosts
from align_anything.datasets.dataset import ExampleDataset, Part, SupervisedTask, Task
from align_anything.datasets.loader import Loader
from align_anything.datasets.measuring import measure_rows
from align_anything.datasets.mixture import Mixture, StreamMixture
from align_anything.datasets.parts import open_parts
from align_anything.datasets.preference import PreferenceTask, UnpairedTask
from align_anything.datasets.sample_cache import SampleCache
from align_anything.datasets.sampler import BatchShape, IndexSampler, Sampler, StreamSampler
from align_anything.models.family import FamilySpec
from align_anything.models.fingerprint import encoding_fingerprint
from align_anything.models.work import WorkOf
from align_anything.trainers.base.pair import Pair

Collate = Callable[..., Batch]


@dataclass(frozen=True)
class Sources:
    """The opened parts of a run; `evaluation` is empty when nothing is evaluated."""

    training: list[Part]
    evaluation: list[Part]


def open_sources(cfgs: RunCfgs) -> Sources:
    """Opens every dataset of the run. Raises DataError for sources or templates that cannot be used."""
    data, cache_dir = cfgs.data_cfgs, cfgs.logger_cfgs.cache_dir
    training = _open(data, 'train', cache_dir, streaming=data.streaming)
    evaluate = data.eval_datasets is not None and cfgs.train_cfgs.eval_strategy != 'no'
    return Sources(training, _open(data, 'eval', cache_dir, streaming=False) if evaluate else [])


def _open(data: DataCfgs, purpose: str, cache_dir: str | None, streaming: bool) -> list[Part]:
    values = {key: getattr(data, f'{purpose}_{key}') for key in ('datasets', 'template', 'template_kwargs')}
    values |= {
        key: getattr(data, f'{purpose}_{key}') for key in ('name', 'split', 'size', 'data_files', 'optional_args')
    }
    return open_parts(
        **values,
        image_folder=data.image_folder,
        video_folder=data.video_folder,
        audio_folder=data.audio_folder,
        media_options=media_options(data),
        cache_bytes=data.media_cache_mb * 2**20,
        streaming=streaming,
        cache_dir=cache_dir,
    )


def media_options(data: DataCfgs) -> dict[str, dict[str, Any]]:
    """What the settings ask of decoding each kind of media."""
    sound = {'max_seconds': data.max_audio_seconds, 'long_audio': data.long_audio}
    frames = {
        key: getattr(data, key)
        for key in ('num_frames', 'fps', 'min_frames', 'max_frames', 'max_frame_pixels', 'max_video_pixels')
    }
    urls = {'allow_urls': data.allow_urls}
    return {
        'image': urls,
        'video': {**urls, **frames, **sound, 'audio': data.audio_in_video},
        'audio': {**urls, **sound},
    }


def make_task(
    algorithm: Algorithm, train_on: str, encode: Callable[..., Example], encode_group: Callable[..., Example]
) -> Task:
    """What the algorithm wants of a row. Raises SettingsError for `train_on` all, which only supervision can mean."""
    if algorithm.data_hook == 'supervised':
        return SupervisedTask(encode, train_on)
    if train_on == 'all':
        raise SettingsError(
            [f"data_cfgs.train_on: 'all' trains prompts, but {algorithm.name} compares answers. Leave it out."]
        )
    if algorithm.data_hook == 'unpaired':
        return UnpairedTask(encode_group)
    return PreferenceTask(encode_group, train_on, algorithm.meta_keys)


def make_dataset(
    parts: list[Part],
    pair: Pair,
    spec: FamilySpec,
    algorithm: Algorithm,
    train_on: str,
    sample_cache_dir: str | None = None,
) -> ExampleDataset:
    """The rows of `parts` as Examples of the family.

    Raises ModelError for sound in clips that it cannot hear, SettingsError when the cache cannot be written to.
    """
    with_sound = any(part.media_options.get('video', {}).get('audio') for part in parts)
    if with_sound and not (spec.hears_clips and 'audio' in spec.media_kinds):
        raise ModelError(
            f"data_cfgs.audio_in_video is on, but models of type '{spec.model_type}' do not hear the sound of a clip: "
            'switch it off, or choose a checkpoint that does, such as an Omni thinker'
        )
    heard = {'audio': {'rate': spec.audio_rate}, 'video': {'rate': spec.audio_rate}}
    task = make_task(algorithm, train_on, spec.encode, spec.encode_group)
    kept = None if sample_cache_dir is None else SampleCache(sample_cache_dir, task, encoding_fingerprint(spec))
    return ExampleDataset(parts, task, pair.name, pair.reads, heard, kept)


def probe(sources: Sources, pair: Pair, algorithm: Algorithm, train_on: str) -> None:
    """Formats the first rows of every part before anything heavy is loaded. Raises DataError when none is usable."""
    task = make_task(algorithm, train_on, _not_encoded, _not_encoded)
    for parts in filter(None, (sources.training, sources.evaluation)):
        ExampleDataset(parts, task, pair.name, pair.reads).probe()


def _not_encoded(*_: object, **__: object) -> None:
    raise AssertionError('probing formats rows, it does not encode them')


def training_sampler(
    parts: list[Part], dataset: ExampleDataset, cfgs: RunCfgs, costs: RowCosts | None = None, *, padded: bool = False
) -> Sampler:
    """Which rows go into which micro-batch of this rank, reshuffled each epoch.

    With `costs`, micro-batches are filled to `max_length_per_batch`; `padded` says how their tokens are counted.
    """
    train, data = cfgs.train_cfgs, cfgs.data_cfgs
    shape = BatchShape(train.per_device_train_batch_size, train.gradient_accumulation_steps, world_size(), rank())
    if data.streaming:
        return StreamSampler(StreamMixture([part.rows for part in parts], train.seed, data.train_weights), shape)
    mixture = Mixture(dataset.sizes, train.seed, data.train_weights)
    if costs is None:
        return IndexSampler(mixture, shape)
    return BudgetSampler(
        mixture, costs, shape, train.max_length_per_batch, padded=padded, group_by_length=train.group_by_length
    )


def row_costs(dataset: ExampleDataset, spec: FamilySpec, cfgs: RunCfgs) -> tuple[RowCosts | None, list[Skipped]]:
    """What every row takes, when the settings ask for micro-batches by tokens, and the rows that cannot be used."""
    if cfgs.train_cfgs.max_length_per_batch is None:
        return None, []
    return measure_rows(dataset, WorkOf(spec), cfgs.data_cfgs.num_workers)


def total_steps(cfgs: RunCfgs, sampler: Sampler) -> int:
    """Optimizer steps of the run: `max_steps`, else those of all epochs. Raises DataError for an endless stream."""
    train = cfgs.train_cfgs
    if train.max_steps is not None:
        return train.max_steps
    steps = [sampler.steps_in(epoch) for epoch in range(train.epochs)]
    if None in steps:
        raise DataError('a stream has no known length: set train_cfgs.max_steps.')
    return sum(steps)


def training_loader(dataset: ExampleDataset, sampler: Sampler, collate: Collate, cfgs: RunCfgs) -> Loader:
    """The loader of this rank's training micro-batches."""
    return Loader(dataset, sampler, collate, cfgs.data_cfgs.num_workers)


def evaluation_loader(dataset: ExampleDataset, collate: Collate, cfgs: RunCfgs) -> Loader:
    """The loader of this rank's evaluation batches, in the order of the rows."""
    shape = BatchShape(cfgs.train_cfgs.per_device_eval_batch_size, 1, world_size(), rank())
    sampler = IndexSampler(Mixture(dataset.sizes, cfgs.train_cfgs.seed, shuffle=False), shape)
    return Loader(dataset, sampler, collate, cfgs.data_cfgs.num_workers)


def require_readable(pair: Pair, spec: FamilySpec, model: str) -> None:
    """Raises ModelError when the model cannot read what the pair puts into conversations."""
    missing = pair.missing_from(spec.media_kinds)
    if missing:
        raise ModelError(
            f"{model} (model_type '{spec.model_type}') takes no {', '.join(missing)}, which the pair '{pair.name}' is "
            'about. Choose a checkpoint that does, or the trainer of a pair without.'
        )
