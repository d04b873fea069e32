"""Online runs whose responses vLLM draws: with the weights in training, on every rank, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.warm import import_vllm
from tests.trainers.runs import run
from tests.trainers.test_online import argv, folder, metrics_of, named

__all__ = ['folder']


@pytest.fixture(scope='module', autouse=True)
def vllm() -> None:
    import_vllm()


Tiny = Callable[..., Path]
SMALL = {'use_vllm': True, 'vllm_gpu_memory_utilization': 0.01, 'eval_strategy': 'no', 'max_steps': 8}


@pytest.mark.parametrize('stage', [2, 3])
def test_ranks_draw_with_the_weights_in_training(stage: int, folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Adapters under ZeRO-3, whole weights under ZeRO-2; the probe of each rollout passes as closely as can be."""
    adapters: dict[str, Any] = {'use_lora': True, 'lora_dropout': 0.0} if stage == 3 else {}
    changes = {**SMALL, **adapters, 'vllm_probe_tolerance': 1e-5, 'learning_rate': 1e-2}
    model = tiny('qwen2')
    settings = argv(folder, tmp_path, model, **changes, ds_cfgs=f'ds_z{stage}_config.json')
    ended = run(settings, 2, algorithm=named('grpo'))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    records = metrics_of(tmp_path)
    assert len(records) == 2
    assert all(record['train/rollout_drift'] < 1e-5 for record in records)
