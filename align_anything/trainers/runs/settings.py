"""What follows from the settings of a run alone: its precision, its engine's configuration, its family's rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from align_anything.algorithms.base import Algorithm
from align_anything.configs.deepspeed_files import load_deepspeed_config
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import rank, world_size
from align_anything.core.errors import SampleError, SettingsError
from align_anything.core.types import Conversation
from align_anything.datasets.media import decode, make_media
from align_anything.engines.by_kind import ByKind
from align_anything.engines.deepspeed_config import build_config, check_sharing, check_zero, offloads_optimizer
from align_anything.engines.depth import with_depth
from align_anything.engines.fsdp_config import build_fsdp_config
from align_anything.engines.optim import choose_optimizer
from align_anything.engines.step import Objective
from align_anything.models.acting.checkpoint import load_action_spec
from align_anything.models.acting.known import is_acting
from align_anything.models.checkpointing import Checkpointing
from align_anything.models.codes import MediaCodes
from align_anything.models.diffusion.checkpoint import is_pipeline
from align_anything.models.diffusion.checkpoint import load_spec as load_pipeline_spec
from align_anything.models.diffusion.spec import Sizing
from align_anything.models.pretrained_model import load_spec
from align_anything.models.spec import Spec
from align_anything.trainers.pairs import Pair

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}


def precision_of(cfgs: RunCfgs) -> str:
    """`bf16`, `fp16` or `fp32`, as the settings ask. Raises SettingsError for fp16 on a CPU, which has no such mode."""
    if cfgs.train_cfgs.fp16 and not torch.cuda.is_available():
        raise SettingsError(['train_cfgs.fp16: DeepSpeed cannot train in float16 on a CPU. Use bf16, or neither.'])
    return 'bf16' if cfgs.train_cfgs.bf16 else 'fp16' if cfgs.train_cfgs.fp16 else 'fp32'


def dtype_of(cfgs: RunCfgs) -> torch.dtype:
    """The type of the run's precision."""
    return DTYPES[precision_of(cfgs)]


def checkpointing_of(cfgs: RunCfgs) -> Checkpointing | None:
    """How activations are computed again, None where they are kept."""
    train = cfgs.train_cfgs
    if not train.gradient_checkpointing:
        return None
    return Checkpointing(train.gradient_checkpointing_every_n_layers, train.activation_offloading)


def told_of_activations(cfgs: RunCfgs) -> str:
    """Says which activations are kept for the backward pass, and where."""
    how, tiles = checkpointing_of(cfgs), cfgs.train_cfgs.mlp_tiles
    tiled = f', MLPs in {tiles} tiles' if tiles > 1 else ''
    if how is None:
        return f'all kept{tiled}'
    layers = 'all layers' if how.every == 1 else f'the first of every {how.every} layers'
    return f'{layers} recomputed' + (', their inputs in host memory' if how.offload else '') + tiled


def data_ranks(cfgs: RunCfgs) -> tuple[int, int]:
    """How many ranks have rows of their own, and the number of this one among them: those that share rows are one."""
    size = cfgs.train_cfgs.sequence_parallel_size
    return world_size() // size, rank() // size


def sharing_of(cfgs: RunCfgs) -> dict[str, Any]:
    """What shares the weights of the run among ranks, as a configuration of its engine without what the run decides."""
    return (
        _fsdp_config(cfgs, 'fp32', 0.0)
        if cfgs.train_cfgs.engine == 'fsdp'
        else load_deepspeed_config(cfgs.train_cfgs.ds_cfgs)
    )


def _fsdp_config(cfgs: RunCfgs, precision: str, max_grad_norm: float) -> dict[str, Any]:
    return build_fsdp_config(
        precision=precision,
        max_grad_norm=max_grad_norm,
        reshard_after_forward=cfgs.train_cfgs.fsdp_reshard_after_forward,
        cpu_offload=cfgs.train_cfgs.fsdp_cpu_offload,
        accumulates=cfgs.train_cfgs.gradient_accumulation_steps > 1,
    )


def engine_config(cfgs: RunCfgs) -> tuple[dict[str, Any], str]:
    """The configuration of the run's engine, DeepSpeed's own or that of FSDP2, and the name of its optimizer."""
    train = cfgs.train_cfgs
    if train.engine == 'fsdp':
        fused = torch.cuda.is_available() and not train.fsdp_cpu_offload
        optimizer = choose_optimizer(train.optimizer, device_type='cuda' if fused else 'cpu', offload=False)
        return _fsdp_config(cfgs, precision_of(cfgs), train.max_grad_norm), optimizer
    zero_file = load_deepspeed_config(train.ds_cfgs)
    device_type = 'cuda' if torch.cuda.is_available() else 'cpu'
    check_sharing(zero_file, train.ds_cfgs, ranks=world_size(), device_type=device_type)
    check_zero(zero_file, train.ds_cfgs)
    optimizer = choose_optimizer(train.optimizer, device_type=device_type, offload=offloads_optimizer(zero_file))
    config = build_config(
        zero_file,
        micro_batch=train.per_device_train_batch_size,
        accumulation=train.gradient_accumulation_steps,
        world_size=world_size(),
        precision=precision_of(cfgs),
        max_grad_norm=train.max_grad_norm,
        optimizer=optimizer,
    )
    return config, optimizer


def frozen_config(cfgs: RunCfgs, precision: str, zero_file: str | None = None) -> dict[str, Any]:
    """The configuration of a model that only scores, by its own `zero_file`, or as the run shares its weights."""
    if cfgs.train_cfgs.engine == 'fsdp':
        return _fsdp_config(cfgs, precision, 0.0)
    return build_config(
        load_deepspeed_config(zero_file or cfgs.train_cfgs.ds_cfgs),
        micro_batch=cfgs.train_cfgs.per_device_train_batch_size,
        accumulation=1,
        world_size=world_size(),
        precision=precision,
        max_grad_norm=0.0,
        optimizer='',
    )


def codes_of_run(cfgs: RunCfgs, pair: Pair, algorithm: Algorithm, spec: Spec) -> MediaCodes | None:
    """The codes of the family as the run scores and weighs them, None for a family without.

    Raises SettingsError for the weight of a kind that it does not write.
    """
    stray = sorted(set(cfgs.data_cfgs.emitted_loss_weights) - spec.emits)
    if stray:
        raise SettingsError(
            [
                f'data_cfgs.emitted_loss_weights: {cfgs.model_cfgs.model_name_or_path} writes no {stray[0]}, but '
                f'{", ".join(sorted(spec.emits)) or "text alone"}.'
            ]
        )
    beside = 0 if spec.codes is None else spec.codes.further
    if not beside and algorithm.depth_coefficient not in (None, 1.0):
        raise SettingsError(
            [
                f"train_cfgs.depth_loss_coef: models of type '{spec.model_type}' have no codes beside their tokens; "
                'leave the setting out.'
            ]
        )
    if spec.codes is None:
        return None
    if spec.codes.wordless and pair.writes_text:
        raise SettingsError(
            [
                f"models of type '{spec.model_type}' write {' and '.join(sorted(spec.emits))} and no text, which "
                f'answers of {pair.name} may hold: choose a pair that writes no text.'
            ]
        )
    return replace(
        spec.codes,
        restricted=algorithm.scores_ranges,
        begins=bool(pair.writes) and not pair.writes_text,
        weights=dict(cfgs.data_cfgs.emitted_loss_weights),
    )


def objective_of(algorithm: Algorithm, codes: MediaCodes | None) -> Objective:
    """What an offline run trains and tells: the algorithm, by kind of unit, and the codes beside its tokens."""
    return with_depth(ByKind(algorithm), algorithm.depth_coefficient, 0 if codes is None else codes.further)


def spec_of(cfgs: RunCfgs) -> Spec:
    """The family rules of the run's checkpoint; reads no weights."""
    model = cfgs.model_cfgs
    if acts(cfgs):
        return load_action_spec(model.model_name_or_path, model.model_max_length, cfgs.diffusion_cfgs.draws_per_sample)
    if denoises(cfgs):
        own = cfgs.diffusion_cfgs
        return load_pipeline_spec(
            model.model_name_or_path,
            sizing_of(cfgs),
            own.draws_per_sample,
            own.max_sequence_length,
            train_text=own.train_text_encoder,
        )
    return load_spec(
        model.model_name_or_path,
        model_max_length=model.model_max_length,
        trust_remote_code=model.trust_remote_code,
        chat_template=model.chat_template,
        processor_kwargs=model.processor_kwargs,
        media_codes=model.media_codes,
    )


def acts(cfgs: RunCfgs) -> bool:
    """Whether the model of the run is one that acts, without tokens."""
    return is_acting(cfgs.model_cfgs.model_name_or_path)


def denoises(cfgs: RunCfgs) -> bool:
    """Whether the model of the run is a pipeline, whose denoiser trains."""
    return is_pipeline(cfgs.model_cfgs.model_name_or_path)


def sizing_of(cfgs: RunCfgs) -> Sizing:
    """What size the media of a run are brought to before a denoiser learns them."""
    asked = cfgs.diffusion_cfgs.resolution
    resolution = (asked, asked) if isinstance(asked, int) else None if asked is None else tuple(asked)
    return Sizing(
        resolution=resolution,
        buckets=cfgs.diffusion_cfgs.aspect_buckets,
        num_frames=cfgs.data_cfgs.num_frames,
        seconds=cfgs.data_cfgs.max_audio_seconds,
    )


def preview_turns(cfgs: RunCfgs, shown: Sequence[str]) -> list[Conversation]:
    """What a run previews: of each prompt the user turn, with images where the pipeline reads such, which `shown` are.

    Raises SettingsError for prompts and images that cannot be read, or are not as many as belong to each other.
    """
    prompts, setting = preview_prompts(cfgs), 'diffusion_cfgs.preview_images'
    images = cfgs.diffusion_cfgs.preview_images or []
    if len(images) != len(prompts) * len(shown):
        read = f'{" and ".join(shown)}, so there should be {len(prompts) * len(shown)}' if shown else 'no image'
        raise SettingsError(
            [
                f'{setting}: {len(images)} for the {len(prompts)} preview_prompts, beside each of which '
                f'{cfgs.model_cfgs.model_name_or_path} reads {read}.'
            ]
        )
    try:
        parts = [{'type': 'image', 'image': decode(make_media('image', image))} for image in images]
    except SampleError as error:
        raise SettingsError([f'{setting}: {error}']) from error
    own = [parts[number * len(shown) : (number + 1) * len(shown)] for number in range(len(prompts))]
    return [
        [{'role': 'user', 'content': [*media, {'type': 'text', 'text': prompt}]}]
        for prompt, media in zip(prompts, own, strict=True)
    ]


def preview_prompts(cfgs: RunCfgs) -> list[str]:
    """The prompts that a run previews. Raises SettingsError for a file that cannot be read, and for none in it."""
    given, setting = cfgs.diffusion_cfgs.preview_prompts, 'diffusion_cfgs.preview_prompts'
    if given is None:
        return []
    if isinstance(given, str):
        try:
            lines = Path(given).read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError([f'{setting}: {given} is no text file that can be read: {error}.']) from error
        given = [line.strip() for line in lines if line.strip()]
    if not given:
        raise SettingsError([f'{setting}: {cfgs.diffusion_cfgs.preview_prompts} has no prompt.'])
    return given
