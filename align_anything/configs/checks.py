"""What single fields cannot say: settings that do not go together, or cannot work on this machine's files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Set
from pathlib import Path

from align_anything.configs.compose import read_compose
from align_anything.configs.deepspeed_files import load_deepspeed_config, switched_off
from align_anything.configs.schema import DataCfgs, RunCfgs
from align_anything.core.errors import SettingsError

Problem = tuple[tuple[str, ...], str]

_PER_DATASET = ('template', 'template_kwargs', 'name', 'split', 'size', 'data_files', 'optional_args')


def check_together(cfgs: RunCfgs, writes: Set[str] | None = frozenset()) -> Iterator[Problem]:
    """Yields `(keys, problem)` for everything wrong across keys. The first key is the one to mend.

    `writes` are the kinds of media in answers, None where nothing says so.
    """
    yield from _check_length(cfgs)
    yield from _check_engine(cfgs)
    yield from _check_patterns(cfgs)
    yield from _check_data(cfgs, needs_template=not writes)
    yield from _check_folders(cfgs)
    yield from _check_adapters(cfgs)
    yield from _check_evaluation(cfgs)


def _check_length(cfgs: RunCfgs) -> Iterator[Problem]:
    train = cfgs.train_cfgs
    if train.epochs == 0 and train.max_steps is None:
        yield (
            ('train_cfgs.epochs', 'train_cfgs.max_steps'),
            'nothing would be trained, since max_steps is null; give a number of epochs or of steps',
        )
    if cfgs.data_cfgs.streaming and train.max_steps is None:
        yield (
            ('data_cfgs.streaming', 'train_cfgs.max_steps'),
            'needs train_cfgs.max_steps: the length of a stream is unknown, and the schedule needs the number of steps',
        )


def _check_engine(cfgs: RunCfgs) -> Iterator[Problem]:
    train = cfgs.train_cfgs
    if train.bf16 and train.fp16:
        yield ('train_cfgs.fp16', 'train_cfgs.bf16'), 'train_cfgs.bf16 is on as well; switch one off'
    if not all(0 <= beta < 1 for beta in train.adam_betas):
        yield ('train_cfgs.adam_betas',), 'must lie from 0 up to, not including, 1'
    if train.engine == 'fsdp':
        yield from _check_fsdp(cfgs)
    if train.torch_compile:
        yield from _check_compiling(cfgs)
    own = train.model_dump()
    precision = 'bf16' if train.bf16 else 'fp16' if train.fp16 else 'fp32'
    for key, dtype in (('ds_cfgs', 'auto'), ('reference_ds_cfgs', own.get('reference_dtype'))):
        file, in_force = own.get(key), precision if dtype == 'auto' else dtype
        if file is not None:
            decider = f'train_cfgs.{precision}' if dtype == 'auto' else 'train_cfgs.reference_dtype'
            for problem in _file_problems(file, in_force, decider):
                yield (f'train_cfgs.{key}',), problem


def _check_fsdp(cfgs: RunCfgs) -> Iterator[Problem]:
    train, engine = cfgs.train_cfgs, 'train_cfgs.engine'
    if train.fp16:
        yield ('train_cfgs.fp16', engine), 'FSDP2 scales no loss, which float16 needs; take bf16, or engine: deepspeed'
    if train.optimizer is not None and train.optimizer.startswith('deepspeed'):
        yield (
            ('train_cfgs.optimizer', engine),
            "is DeepSpeed's, which does not step on shards of FSDP2; take adamw_torch or adamw_torch_fused",
        )
    if train.optimizer == 'adamw_8bit':
        yield (
            ('train_cfgs.optimizer', engine),
            'keeps its moments in blocks of 8 bits, which FSDP2 does not shard; take adamw_torch or adamw_torch_fused',
        )
    if cfgs.bnb_cfgs.use_bnb:
        yield ('bnb_cfgs.use_bnb', engine), 'FSDP2 shards no quantised weights here; leave it out, or take deepspeed'


def _check_compiling(cfgs: RunCfgs) -> Iterator[Problem]:
    train, key = cfgs.train_cfgs, 'train_cfgs.torch_compile'
    for variable in ('TORCHDYNAMO_DISABLE', 'TORCH_COMPILE_DISABLE'):
        if os.environ.get(variable) == '1':
            yield (key,), f'the environment variable {variable} has torch compile nothing; unset it, or leave this out'
    if train.mlp_tiles > 1:
        yield (
            (key, 'train_cfgs.mlp_tiles'),
            'compiles whole layers, and mlp_tiles computes their MLPs again piece by piece; leave one of them out',
        )
    if train.use_liger_kernel:
        yield (
            (key, 'train_cfgs.use_liger_kernel'),
            'fuses what kernels of Liger compute, and would compile each layer anew for them; leave one of them out',
        )
    if train.engine == 'deepspeed' and _zero_stage(train.ds_cfgs) == 3:
        yield (
            (key, 'train_cfgs.ds_cfgs'),
            'compiles whole layers, of which ZeRO-3 gathers one module after another; take ds_cfgs: '
            'ds_z2_config.json, or engine: fsdp, which shares weights too',
        )


def _zero_stage(file: str) -> int:
    """The stage of a DeepSpeed file, 0 of one that is broken, which is told elsewhere."""
    try:
        return load_deepspeed_config(file).get('zero_optimization', {}).get('stage', 0)
    except SettingsError:
        return 0


def _file_problems(file: str, precision: str, decider: str) -> Iterator[str]:
    try:
        load_deepspeed_config(file)
        if precision in switched_off(file):
            yield (
                f'the DeepSpeed file switches {precision} off, but {decider} asks for it; change one of them, or write '
                '"auto" there'
            )
    except SettingsError as error:
        yield from error.problems


def _check_patterns(cfgs: RunCfgs) -> Iterator[Problem]:
    train = cfgs.train_cfgs
    for key, patterns in (('lr_groups', train.lr_groups or {}), ('unfreeze_patterns', train.unfreeze_patterns)):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                yield (f'train_cfgs.{key}',), f"'{pattern}' is not a regular expression: {error}"


def _check_data(cfgs: RunCfgs, needs_template: bool) -> Iterator[Problem]:
    models = cfgs.model_cfgs
    if cfgs.train_cfgs.requires_model and not models.model_name_or_path and not models.compose:
        yield ('model_cfgs.model_name_or_path',), 'is required: name the checkpoint, a folder or a hub name'
    if models.compose:
        yield from _compose_problems(cfgs)
    roles = ('train', 'eval', *(('ptx',) if 'ptx_datasets' in type(cfgs.data_cfgs).model_fields else ()))
    for role in roles if cfgs.train_cfgs.reads_rows else ():
        for key, problem in _dataset_problems(cfgs.data_cfgs, role, needs_template):
            yield (f'data_cfgs.{key}', f'data_cfgs.{role}_datasets'), problem
    weights, datasets = cfgs.data_cfgs.train_weights, cfgs.data_cfgs.train_datasets
    if weights is not None and datasets:
        yield from _weight_problems(weights, 1 if isinstance(datasets, str) else len(datasets))
    if weights is not None and cfgs.data_cfgs.train_mixing != 'concatenate':
        yield (
            ('data_cfgs.train_mixing', 'data_cfgs.train_weights'),
            f"is '{cfgs.data_cfgs.train_mixing}', but train_weights mixes by weight; leave one of them out",
        )
    for key in ('image_folder', 'video_folder', 'audio_folder'):
        folder = getattr(cfgs.data_cfgs, key)
        if folder is not None and not Path(folder).is_dir():
            yield (f'data_cfgs.{key}',), 'is not a folder'
    if cfgs.data_cfgs.min_frames > cfgs.data_cfgs.max_frames:
        yield ('data_cfgs.min_frames', 'data_cfgs.max_frames'), f'is over max_frames ({cfgs.data_cfgs.max_frames})'
    if cfgs.data_cfgs.long_audio == 'split' and cfgs.data_cfgs.max_audio_seconds is None:
        yield (
            ('data_cfgs.long_audio', 'data_cfgs.max_audio_seconds'),
            "'split' needs max_audio_seconds: the length of the pieces",
        )


def _compose_problems(cfgs: RunCfgs) -> Iterator[Problem]:
    if cfgs.model_cfgs.model_name_or_path:
        yield (
            ('model_cfgs.compose', 'model_cfgs.model_name_or_path'),
            'makes the checkpoint to train, and model_name_or_path names one; leave one of them out',
        )
    try:
        read_compose(cfgs.model_cfgs.compose, 'model_cfgs.compose')
    except SettingsError as error:
        for problem in error.problems:
            yield ('model_cfgs.compose',), problem


def _dataset_problems(data_cfgs: DataCfgs, role: str, needs_template: bool) -> Iterator[tuple[str, str]]:
    """Yields keys of `role` that are missing, and lists that have another length than the list of datasets."""
    values = data_cfgs.model_dump()
    datasets = values[f'{role}_datasets']
    if not datasets and role == 'train':
        yield 'train_datasets', 'is required: name the training data, for instance --train_datasets data.jsonl'
    # Rows whose answers are media are known by their columns.
    if needs_template and not values[f'{role}_template'] and (datasets or role == 'train'):
        yield f'{role}_template', f'is required: name the template that reads the rows of {role}_datasets'
    if not datasets:
        return
    several = not isinstance(datasets, str)
    count = len(datasets) if several else 1
    for suffix in _PER_DATASET:
        value = values[f'{role}_{suffix}']
        # A single dataset may have several files; a list of datasets has a list of entries.
        is_column = isinstance(value, list) and (several or suffix != 'data_files')
        if is_column and len(value) != count:
            yield (
                f'{role}_{suffix}',
                f'has {len(value)} entries for {count} datasets in {role}_datasets; give one for all, or one for each',
            )


def _weight_problems(weights: list[float], count: int) -> Iterator[Problem]:
    keys = ('data_cfgs.train_weights', 'data_cfgs.train_datasets')
    if len(weights) != count:
        yield keys, f'has {len(weights)} entries for {count} datasets in train_datasets; give one for each'
    elif sum(weights) == 0:
        yield keys, 'are all zero; at least one must be positive'


def _check_folders(cfgs: RunCfgs) -> Iterator[Problem]:
    output_dir, resume = cfgs.logger_cfgs.output_dir, cfgs.train_cfgs.resume
    if not output_dir and cfgs.train_cfgs.reads_rows:
        yield ('logger_cfgs.output_dir',), 'is required: name the folder that the run writes to'
    elif output_dir:
        parent = Path(output_dir).absolute()
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            yield ('logger_cfgs.output_dir',), f'cannot be made: {parent} is a file'
        elif not os.access(parent, os.W_OK):
            yield ('logger_cfgs.output_dir',), f'cannot be written: no permission in {parent}'
    if resume is not None and resume != 'auto' and not Path(resume).is_dir():
        yield ('train_cfgs.resume',), 'is no checkpoint: there is no such folder. Give its path, or auto'


def _check_adapters(cfgs: RunCfgs) -> Iterator[Problem]:
    lora, bnb = cfgs.lora_cfgs, cfgs.bnb_cfgs
    if lora.use_lora and lora.inference_mode:
        yield (
            ('lora_cfgs.inference_mode', 'lora_cfgs.use_lora'),
            'freezes the adapters that use_lora asks to train; set it to False',
        )
    if lora.use_lora and cfgs.train_cfgs.stage == 'projection':
        yield (
            ('train_cfgs.stage', 'lora_cfgs.use_lora'),
            'trains what lies between encoders and language model, which use_lora has no adapters for; leave use_lora '
            'out, or take the stage joint',
        )
    if lora.use_lora and lora.target_modules == []:
        yield ('lora_cfgs.target_modules', 'lora_cfgs.use_lora'), 'names no module; give names, or auto'
    if not bnb.use_bnb:
        return
    if not lora.use_lora:
        yield (
            ('bnb_cfgs.use_bnb', 'lora_cfgs.use_lora'),
            'needs lora_cfgs.use_lora: quantised weights cannot be trained themselves',
        )
    if bnb.load_in_4bit == bnb.load_in_8bit:
        state = 'both on' if bnb.load_in_4bit else 'both off'
        yield (
            ('bnb_cfgs.load_in_4bit', 'bnb_cfgs.load_in_8bit'),
            f'load_in_4bit and load_in_8bit are {state}; use_bnb needs exactly one of them',
        )


def _check_evaluation(cfgs: RunCfgs) -> Iterator[Problem]:
    if cfgs.data_cfgs.eval_datasets is not None and cfgs.train_cfgs.eval_strategy != 'no':
        return
    for key in ('save_best', 'early_stopping_patience'):
        if getattr(cfgs.train_cfgs, key) is not None:
            yield (
                (f'train_cfgs.{key}', 'data_cfgs.eval_datasets', 'train_cfgs.eval_strategy'),
                'goes by evaluations, but there are none; give eval_datasets, and an eval_strategy other than no',
            )
