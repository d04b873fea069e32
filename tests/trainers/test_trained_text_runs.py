"""Runs that train the text encoders of a pipeline along."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.harness.pairwise import first_of
from tests.trainers.denoising import PICTURES, SHOWN, metrics, named, offline, online, write_digits
from tests.trainers.runs import run, succeed

LORA = {'use_lora': True, 'r': 4, 'lora_alpha': 8, 'lora_dropout': 0.0}


def test_all_of_it_is_trained_and_the_rest_stays(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows, model = write_digits(tmp_path, 4), tiny('sd15')
    asked = {'train_text_encoder': True, 'lr_groups.text_encoder': 1e-4, 'ds_cfgs': 'ds_z3_config.json'}
    succeed(offline(tmp_path / 'out', model, rows, max_steps=2, prompt_dropout=0.5, **asked), 2, PICTURES)
    saved = tmp_path / 'out' / 'slice_end'
    for name, moves in (('unet', True), ('text_encoder', True), ('vae', False)):
        (file,) = [path.name for path in (model / name).glob('*.safetensors')]
        before, after = load_file(model / name / file), load_file(saved / name / file)
        assert any(not torch.equal(before[key], after[key]) for key in before) is moves, name


def test_adapters_of_it_are_trained_and_its_reference_is_without_them(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    rows = write_digits(tmp_path, 4)
    asked = {**LORA, **SHOWN, 'train_text_encoder': True, 'max_steps': 2, 'learning_rate': 1e-2}
    succeed(offline(tmp_path / 'out', tiny('sdxl'), rows, **asked), 1, PICTURES, algorithm=named('dpo'))
    first, second = metrics(tmp_path / 'out', 'train/loss')
    assert first == pytest.approx(math.log(2), abs=1e-6) and second != pytest.approx(first, abs=1e-4)
    weights = load_file(tmp_path / 'out' / 'slice_end' / 'pytorch_lora_weights.safetensors')
    for part in ('unet', 'text_encoder', 'text_encoder_2'):
        assert any(name.startswith(f'{part}.') and 'lora_B' in name and own.any() for name, own in weights.items())


@pytest.mark.parametrize('name', first_of(['grpo', 'ppo'], 'grpo'))
def test_steps_of_rollouts_train_it(name: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """What is scored is what was sampled, text encoders included: the first ratio is one."""
    rows = write_digits(tmp_path, 4)
    asked = {**LORA, 'train_text_encoder': True, 'guidance_scale': 2.0, 'max_steps': 1}
    succeed(online(tmp_path / 'out', tiny('sd15'), rows, **asked), 1, PICTURES, algorithm=named(name))
    assert metrics(tmp_path / 'out', 'train/ratio') == pytest.approx([1.0], abs=1e-6)
    weights = load_file(tmp_path / 'out' / 'slice_end' / 'pytorch_lora_weights.safetensors')
    assert any(name.startswith('text_encoder.') and 'lora_B' in name and own.any() for name, own in weights.items())


def test_other_families_are_refused_before_they_load(tiny: Callable[..., Path], tmp_path: Path) -> None:
    argv = offline(tmp_path / 'out', tiny('sd3'), write_digits(tmp_path, 4), train_text_encoder=True)
    ended = run(argv, pair=PICTURES)[0]
    assert ended.code == 2 and 'only those of Stable Diffusion 1, 2 and XL are' in ended.output
