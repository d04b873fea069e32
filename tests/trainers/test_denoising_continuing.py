"""A run of a pipeline goes on from a saved adapter, which is its reference too; what does not fit is said at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from align_anything.cli.inspection import inspect_run
from align_anything.cli.merging import merge_adapter
from align_anything.core.errors import SettingsError
from align_anything.models.diffusion.checkpoint import is_pipeline
from align_anything.models.diffusion.saved_lora import is_lora_folder
from tests.harness.pairwise import first_of
from tests.trainers.denoising import PICTURES, SHOWN, metrics, named, offline, write_digits
from tests.trainers.runs import run, succeed

LORA: dict[str, Any] = {'use_lora': True, 'r': 4, 'lora_alpha': 8, 'lora_dropout': 0.0}
FILE = 'pytorch_lora_weights.safetensors'


@pytest.fixture
def first(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """Trains an adapter; returns the output folder."""
    rows = write_digits(tmp_path, 4)
    succeed(offline(tmp_path / 'first', tiny('sd3'), rows, max_steps=2, **{**LORA, 'learning_rate': 1e-2}), 1, PICTURES)
    return tmp_path / 'first'


@pytest.mark.parametrize('ds_cfgs', first_of(['ds_z0_config.json', 'ds_z3_config.json'], 'ds_z3_config.json'))
def test_a_run_goes_on_from_an_adapter(ds_cfgs: str, first: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    still = {**LORA, **SHOWN, 'learning_rate': 1e-9, 'max_steps': 1, 'ds_cfgs': ds_cfgs, 'scale_coeff': 1e6}
    before = load_file(first / 'slice_end' / FILE)
    assert any('lora_B' in name and tensor.abs().max() > 1e-3 for name, tensor in before.items())
    for output, model, more in (('alone', first, {}), ('named', tiny('sd3'), {'lora_weights': first / 'slice_end'})):
        argv = offline(tmp_path / output, model, tmp_path / 'rows.jsonl', **still, **more)
        told = succeed(argv, 1, PICTURES, algorithm=named('dpo'))
        assert 'reference: a frozen copy' in told
        # The reference is what it starts from, and not the pipeline under that.
        assert metrics(tmp_path / output, 'train/loss') == pytest.approx([math.log(2)], abs=1e-6)
        after = load_file(tmp_path / output / 'slice_end' / FILE)
        assert before.keys() == after.keys()
        assert all((after[name] - tensor).abs().max() < 1e-6 for name, tensor in before.items())


def test_runs_that_cannot_go_on_say_so_before_they_load(first: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = tmp_path / 'rows.jsonl'
    for model, settings, words in (
        (first, {}, 'Set lora_cfgs.use_lora to train the adapter on'),
        (first, {**LORA, 'r': 8}, 'set --r 4'),
        (
            tiny('sd15'),
            {**LORA, 'lora_weights': first},
            'and unet of a StableDiffusionPipeline is what',
        ),
        (tiny('sd3'), {'lora_weights': first}, 'diffusion_cfgs.lora_weights'),
        (tiny('sd3'), {**LORA, 'lora_weights': tmp_path / 'none'}, 'cannot be read'),
    ):
        ended = run(offline(tmp_path / 'second', model, rows, '--dry_run', **settings), pair=PICTURES)[0]
        assert ended.code == 2 and words in ended.output and 'Traceback' not in ended.output, ended.output
        assert 'in force' not in ended.output


def test_the_pipeline_itself_may_be_the_reference(first: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny('sd3')
    asked = {**LORA, **SHOWN, 'max_steps': 1, 'lora_weights': first, 'reference_model_name_or_path': base}
    argv = offline(tmp_path / 'second', base, tmp_path / 'rows.jsonl', **{**asked, 'scale_coeff': 1e6})
    assert 'reference: the model without the adapter' in succeed(argv, 1, PICTURES, algorithm=named('dpo'))
    assert metrics(tmp_path / 'second', 'train/loss') != pytest.approx([math.log(2)], abs=1e-3)


def test_other_commands_know_such_an_adapter(first: Path, tmp_path: Path) -> None:
    argv = offline(tmp_path / 'looked_at', first, tmp_path / 'rows.jsonl', **LORA)
    assert inspect_run(PICTURES, named('sft'), argv).is_file()
    with pytest.raises(SettingsError, match='Set lora_cfgs.use_lora'):
        inspect_run(PICTURES, named('sft'), offline(tmp_path / 'full', first, tmp_path / 'rows.jsonl'))
    merge_adapter(first, tmp_path / 'merged')
    assert is_pipeline(tmp_path / 'merged') and not is_lora_folder(tmp_path / 'merged')
