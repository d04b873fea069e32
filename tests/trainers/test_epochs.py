"""A run may end within an epoch: its steps and its schedule are those of that share of the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from align_anything.cli.leaves import find_run
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.sampler import BatchShape, IndexSampler
from align_anything.trainers.runs.data import total_steps
from tests.trainers.runs import lines, run, sft, text_rows, write_rows


@pytest.mark.parametrize(
    ('rows', 'epochs', 'steps'),
    # Two rows a step. A share of an epoch is rounded up to whole steps, as in transformers; 0.1 of 30 is 3, though in
    # floating point it is more.
    [(8, 1, 4), (8, 0.5, 2), (8, 1.5, 6), (8, 0.3, 2), (7, 2.25, 9), (60, 0.1, 3), (60, 2.1, 63), (8, 0.001, 1)],
)
def test_a_share_of_an_epoch_is_rounded_up_to_steps(rows: int, epochs: float, steps: int) -> None:
    sampler = IndexSampler(Mixture([rows], 0), BatchShape(2))
    cfgs = SimpleNamespace(train_cfgs=SimpleNamespace(epochs=epochs, max_steps=None))
    assert total_steps(cfgs, sampler) == steps


@pytest.mark.parametrize(('name', 'steps'), [('sft', 6), pytest.param('grpo', 3, marks=pytest.mark.extended)])
def test_a_run_ends_within_an_epoch(name: str, steps: int, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Eight rows, two a step; of prompts, four a rollout."""
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(8))
    settings = {'epochs': 1.5, 'eval_datasets': rows, 'eval_template': 'Instruction', 'eval_strategy': 'epoch'}
    online = {
        'num_generations': 2,
        'per_device_prompt_batch_size': 4,
        'per_device_train_batch_size': 8,
        'max_new_tokens': 4,
        'reward_functions': '[length]',
        'reward_kwargs': '{length: {max_length: 6, cache: 6}}',
    }
    pair, algorithm = find_run('text_to_text', name)
    argv = sft(tmp_path / 'out', tiny('qwen2'), rows, **settings, **(online if name == 'grpo' else {}))
    (ended,) = run(argv, pair=pair, algorithm=algorithm)
    assert ended.code == 0, ended.output
    records = lines(tmp_path / 'out/metrics.jsonl')
    trained = [record for record in records if 'train/learning_rate' in record]
    assert [record['step'] for record in trained] == [*range(1, steps + 1)]
    assert trained[-1]['train/epoch'] == pytest.approx(1.5)
    # The schedule is linear and ends with the run; there is an evaluation where the data end, and at the last step.
    rates = [record['train/learning_rate'] for record in trained]
    assert rates[-1] == pytest.approx(0.0, abs=1e-12) and rates[0] > 0
    evaluated = [record['step'] for record in records if any(key.startswith('eval/') for key in record)]
    assert evaluated == [steps * 2 // 3, steps]
