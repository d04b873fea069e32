"""Online updates have no dropout where they are compared with scores that had none: on policy every ratio is 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from align_anything.cli.leaves import find_run
from align_anything.models.dropout import switch_off_dropout
from align_anything.models.pretrained_model import load_model, load_spec
from tests.trainers.runs import Ended, Hook, lines, nothing, run, sft, text_rows, write_rows

Tiny = Callable[..., Path]
REWARD = 'def varied(completions):\n    return [float(sum(map(ord, item.response)) % 97) for item in completions]\n'
LORA = {'use_lora': True, 'r': 4}


def trained(name: str, folder: Path, model: Path, *more: str, before: Hook = nothing, **settings: Any) -> Ended:
    """Two rollouts and one step on each, so on policy."""
    rows = write_rows(folder / 'rows.jsonl', text_rows(2))
    (folder / 'rewards.py').write_text(REWARD)
    own = {
        'num_generations': 2,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'max_new_tokens': 6,
        'reward_functions': f'[{folder}/rewards.py:varied]',
        'max_steps': 2,
        **settings,
    }
    pair, algorithm = find_run('text_to_text', name)
    (ended,) = run(sft(folder / 'out', model, rows, *more, **own), pair=pair, algorithm=algorithm, before=before)
    return ended


def ratios(folder: Path) -> list[float]:
    return [record['train/ratio'] for record in lines(folder / 'out/metrics.jsonl')]


def with_dropout(rank: int) -> None:
    """Lets a run have what it is asked for."""
    from align_anything.trainers.runs import assembly, online

    online.check_online = lambda *given: None
    assembly.switch_off_dropout = lambda model: 0.0


def test_adapters_have_no_dropout_unless_it_is_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    ended = trained('grpo', tmp_path, tiny('qwen2'), **LORA)
    assert ended.code == 0, ended.output
    assert ratios(tmp_path) == pytest.approx([1.0, 1.0], abs=1e-6)
    saved = json.loads((tmp_path / 'out/slice_end/adapter_config.json').read_text())
    assert saved['lora_dropout'] == 0.0


def test_with_dropout_no_ratio_would_be_one(tiny: Tiny, tmp_path: Path) -> None:
    # Of an algorithm that scores a rollout before the only update on it.
    ended = trained('rloo', tmp_path, tiny('qwen2'), **LORA, lora_dropout=0.3, before=with_dropout)
    assert ended.code == 0, ended.output
    # A new adapter adds nothing, whatever its dropout; after a step it does.
    first, second = ratios(tmp_path)
    assert first == pytest.approx(1.0, abs=1e-6) and abs(second - 1) > 1e-4


@pytest.mark.parametrize('more', [('--dry_run',), ()])
def test_dropout_of_adapters_beside_ratios_is_refused(more: tuple[str, ...], tiny: Tiny, tmp_path: Path) -> None:
    ended = trained('rloo', tmp_path, tiny('qwen2'), *more, **LORA, lora_dropout=0.1)
    assert ended.code == 2 and 'lora_cfgs.lora_dropout = 0.1: rloo compares the policy' in ended.output


def test_an_algorithm_without_ratios_takes_it(tiny: Tiny, tmp_path: Path) -> None:
    ended = trained('online_dpo', tmp_path, tiny('qwen2'), **LORA, lora_dropout=0.1, per_device_train_batch_size=4)
    assert ended.code == 0, ended.output


@pytest.mark.parametrize('name', ['grpo', pytest.param('ppo', marks=pytest.mark.extended)])
def test_dropout_of_the_checkpoint_is_off_too(name: str, tiny: Tiny, tmp_path: Path) -> None:
    model = tmp_path / 'model'
    shutil.copytree(tiny('opt'), model)
    config = json.loads((model / 'config.json').read_text())
    (model / 'config.json').write_text(json.dumps({**config, 'dropout': 0.3, 'attention_dropout': 0.2}))
    ended = trained(name, tmp_path, model)
    assert ended.code == 0, ended.output
    assert 'dropout: off, where the checkpoint has up to 0.3' in ended.output
    assert ratios(tmp_path) == pytest.approx([1.0, 1.0], abs=1e-5)
    saved = json.loads((tmp_path / 'out/slice_end/config.json').read_text())
    assert (saved['dropout'], saved['attention_dropout']) == (0.3, 0.2), 'the checkpoint stays what it was'


def test_every_way_of_dropping_is_switched_off(tiny: Tiny, tmp_path: Path) -> None:
    """Modules, numbers that modules hand to functions, and layers that are left out."""
    model = tmp_path / 'model'
    shutil.copytree(tiny('opt'), model)
    config = json.loads((model / 'config.json').read_text())
    wild = {'dropout': 0.5, 'attention_dropout': 0.5, 'layerdrop': 0.5}
    (model / 'config.json').write_text(json.dumps({**config, **wild}))
    opt = load_model(model, load_spec(model).components).train()
    opt.extra = nn.Dropout(0.25)
    ids = torch.arange(5, 15)[None]
    # Both layers are left out in a quarter of the passes, and such passes are alike.
    torch.manual_seed(0)
    with torch.no_grad():
        passes = [opt(input_ids=ids).logits for _ in range(4)]
        assert any(not torch.equal(passes[0], other) for other in passes[1:])
        assert switch_off_dropout(opt) == 0.5 and opt.extra.p == 0.0
        found = opt(input_ids=ids).logits
        assert torch.equal(found, opt(input_ids=ids).logits) and torch.equal(found, opt.eval()(input_ids=ids).logits)
