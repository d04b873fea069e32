"""A run as the trainers assemble it, in forked ranks, without its loop: settings, engine, a few optimizer steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ['DS_ACCELERATOR'] = 'cpu'

# Imported before forking, or every rank would spend its seconds on it.
import deepspeed  # noqa: E402, F401
import peft  # noqa: E402, F401
import torch  # noqa: E402
import torchvision  # noqa: E402, F401
from torch import Tensor, nn  # noqa: E402

from align_anything.algorithms.sft import SFT  # noqa: E402
from align_anything.configs.schema import RunCfgs  # noqa: E402
from align_anything.core.files import atomic_write_json  # noqa: E402
from align_anything.core.types import Batch  # noqa: E402
from align_anything.engines.deepspeed_engine import DeepSpeedEngine  # noqa: E402
from align_anything.engines.process_group import join_process_group  # noqa: E402
from align_anything.trainers.launch import settings_of  # noqa: E402
from align_anything.trainers.pairs import PAIRS  # noqa: E402
from align_anything.trainers.runs.assembly import assemble, make_collator  # noqa: E402
from align_anything.trainers.runs.settings import spec_of  # noqa: E402
from tests.harness.ranks import run_ranks  # noqa: E402
from tests.invariants.families import WRITING, schedule  # noqa: E402
from tests.models.mixed import MEDIA  # noqa: E402

TIMEOUT = 240
EPSILON = 1e-3
Work = Callable[..., Any]


def fork(work: Work, ranks: int, *args: Any) -> list[Any]:
    """`work(rank, *args)` in forked ranks that have joined DeepSpeed's process group; a hang ends in an error."""

    def body(rank: int) -> Any:
        join_process_group()
        return work(rank, *args)

    return run_ranks(body, ranks, timeout=TIMEOUT)


def settings(folder: Path, family: str, zero: Path, **changes: Any) -> RunCfgs:
    """The settings of a short float32 run with a constant rate; `changes` add to the command line or replace in it."""
    pair = pair_of(family)
    values = {
        'model_name_or_path': folder,
        'train_datasets': 'rows.jsonl',
        'train_template': 'Messages',
        'output_dir': zero.parent / 'out',
        'ds_cfgs': zero,
        'bf16': False,
        'freeze_vision_tower': False,
        'gradient_checkpointing': False,
        # What runs are compared with has none.
        'router_aux_loss_coef': 0,
        'learning_rate': 0.002,
        'lr_scheduler_type': 'constant',
        'lr_warmup_ratio': 0,
        'per_device_train_batch_size': 2,
        'gradient_accumulation_steps': 2,
        'max_grad_norm': 1,
        'weight_decay': 0.1,
        # Wide, or Adam would make full steps out of the rounding of gradients that are zero.
        'adam_epsilon': EPSILON,
        **changes,
    }
    argv = [word for key, value in values.items() for word in (f'--{key}', str(value))]
    return settings_of(pair, SFT, argv, {}).cfgs


def pair_of(family: str) -> Any:
    """The pair that takes what the rows of a family hold; ranks agree on its kinds, not on those of the rows."""
    kinds = MEDIA.get(family, ())
    if family in WRITING:
        return PAIRS['text_image_to_text_image']
    if not kinds:
        return PAIRS['text_to_text']
    return PAIRS['text_image_to_text'] if kinds == ('image',) else PAIRS['any_to_text']


def zero_file(folder: Path, stage: int, **more: Any) -> Path:
    """A ZeRO file that partitions even tiny parameters."""
    path = folder / f'zero{stage}-{"-".join(more)}.json'
    zero = {'stage': stage, **({'stage3_param_persistence_threshold': 0} if stage == 3 else {}), **more}
    # Ranks write it side by side and read it at once.
    atomic_write_json(path, {'zero_optimization': zero})
    return path


def assembled(cfgs: RunCfgs, family: str) -> DeepSpeedEngine:
    collate = make_collator(cfgs, spec_of(cfgs), pair_of(family), SFT())
    torch.manual_seed(cfgs.train_cfgs.seed)
    return assemble(cfgs, SFT(), collate, total_steps=10)


def batches_by_step(run: DeepSpeedEngine, folder: Path, rank: int, ranks: int, steps: int = 2) -> list[list[Batch]]:
    """This rank's micro-batches of the first steps of the schedule; together the same rows for any world size."""
    found = []
    for step in schedule(folder)[:steps]:
        micros = step[rank] if ranks == 2 else step[0] + step[1]
        found.append([run.policy.collate([row.example for row in micro]) for micro in micros])
    return found


def train(run: DeepSpeedEngine, folder: Path, rank: int, ranks: int, steps: int = 2) -> list[float]:
    """Losses of a few optimizer steps."""
    results = [
        run.train_step(micro_batches, SFT()) for micro_batches in batches_by_step(run, folder, rank, ranks, steps)
    ]
    assert all(result.applied for result in results)
    return [result.loss for result in results]


def weights(run: DeepSpeedEngine) -> dict[str, Tensor] | None:
    """Every parameter of the live model, whole, on rank 0."""
    state = run.full_state_dict(run.policy.model)
    names = {name for name, _ in run.policy.model.named_parameters()}
    return None if state is None else {name: tensor for name, tensor in state.items() if name in names}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
