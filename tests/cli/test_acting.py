"""What the command does with models that act: their adapters merged and shared, and what it refuses by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.cli.main import main
from align_anything.cli.merging import merge_adapter
from align_anything.cli.sharing.exporting import export
from align_anything.core.actions import ActionSpace
from align_anything.models.acting.checkpoint import export_acting, load_acting, load_action_spec
from align_anything.models.acting.pi0_checkpoint import export_pi0, load_pi0
from align_anything.models.action_space import read_action_space, write_action_space
from align_anything.models.adapter import find_adapter, put_on
from align_anything.models.pretrained_model import tune_model
from align_anything.testing.tiny import build
from tests.models.common import lora_cfgs, stir
from tests.policies.acting.worlds import NUMBERS, small

Tiny = Callable[..., Path]


def refused(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in argv])
    assert leaving.value.code == 2
    return ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize('model_type', ['spoc', 'pi0'])
def test_a_plan_of_a_language_model_is_none_of_what_acts(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': model_type}))
    told = refused(capsys, 'plan', '--model', tmp_path, '--gpus', 8, '--gpu-memory', 80)
    assert 'acts without tokens' in told and '`--dry_run`' in told


def test_an_adapter_alone_keeps_what_its_actions_mean(tmp_path: Path) -> None:
    adapter, space = tmp_path / 'adapter', ActionSpace(names=('up', 'down'), tokens='tail', first_ids=(300,))
    adapter.mkdir()
    (adapter / 'adapter_config.json').write_text('{}')
    (adapter / 'adapter_model.safetensors').write_bytes(b'')
    write_action_space(adapter, space)
    export(adapter, tmp_path / 'out', 'adapter')
    assert read_action_space(tmp_path / 'out') == space


@pytest.mark.extended
@pytest.mark.parametrize('kind', ['named', 'numbers', 'pi0'])
def test_an_adapter_is_merged_into_what_acts(kind: str, tmp_path: Path) -> None:
    model, adapter, out = tmp_path / 'model', tmp_path / 'adapter', tmp_path / 'merged'
    if kind == 'pi0':
        build('pi0', model)
    else:
        small(model, **({'space': NUMBERS, 'head': 'gaussian'} if kind == 'numbers' else {}))
    load, save = (load_pi0, export_pi0) if kind == 'pi0' else (load_acting, export_acting)
    spec = load_action_spec(model)
    targets = {'target_modules': ['q_proj', 'v_proj'] if kind == 'pi0' else ['wq', 'w1', 'actor']}
    if kind == 'numbers':
        targets = {'target_modules': ['wq', 'w1']}
    adapted = tune_model(load(model, torch.float32), spec.components, lora_cfgs=lora_cfgs(**targets))
    stir(adapted)
    # What an adapter was trained with holds, whatever the model under it has.
    space = replace(spec.space, executed=1, pictures={'rotate': 180})
    spec.act_in(space)
    save(adapted, None, adapter, spec, merge_adapter=False)
    merge_adapter(adapter, out)
    assert find_adapter(out) is None and load_action_spec(out).space == space
    expected = put_on(load(model, torch.float32), find_adapter(adapter)).merge_and_unload().state_dict()
    merged = load(out, torch.float32).state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.allclose(merged[name], expected[name], atol=1e-6) for name in merged)
    before = load(model, torch.float32).state_dict()
    assert any(not torch.equal(merged[name], before[name]) for name in merged)
    if kind == 'pi0':
        told = (out / 'processor_config.json').read_text()
        assert json.loads(told)['state_mean'] == json.loads((model / 'processor_config.json').read_text())['state_mean']


@pytest.mark.extended
def test_an_adapter_whose_space_is_gone_has_that_of_its_model_or_is_refused(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, adapter = tmp_path / 'model', tmp_path / 'adapter'
    small(model)
    adapter.mkdir()
    (adapter / 'adapter_config.json').write_text(json.dumps({'base_model_name_or_path': str(model)}))
    assert read_action_space(adapter) == load_action_spec(model).space
    (model / 'action_space.json').unlink()
    assert read_action_space(adapter) is None
    argv = ('generate', 'text_video_to_action', '--train_datasets', 'x.jsonl', '--model_name_or_path', adapter)
    assert 'has no action_space.json' in _problem(capsys, tmp_path, *argv)
    # That of a model that writes tokens is one without what its tokens mean, and it is not guessed.
    (adapter / 'adapter_config.json').write_text(json.dumps({'base_model_name_or_path': str(tiny('qwen2_5_vl'))}))
    assert 'has no action space: set action_cfgs.action_tokens' in _problem(capsys, tmp_path, *argv)


def _problem(capsys: pytest.CaptureFixture[str], folder: Path, *argv: Any) -> str:
    (folder / 'x.jsonl').write_text('{"prompt": "go left"}')
    words = [folder / 'x.jsonl' if word == 'x.jsonl' else word for word in argv]
    return refused(capsys, *words, '--train_template', 'Prompts', '--output_dir', folder / 'out', '--bf16', 'False')
