"""The best model by an evaluation is kept, a run that no longer improves ends, and a resumed one remembers both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align_anything.algorithms.dpo import DPO
from align_anything.algorithms.rm import RM
from align_anything.core.errors import SettingsError
from align_anything.engines.step import StepResult
from align_anything.trainers.loops.offline import OfflineLoop
from align_anything.trainers.loops.progress import Progress
from tests.trainers.runs import lines, sft, succeed, text_rows, weights, write_rows

Values = Sequence[dict[str, float]]


class Judged:
    """A loop whose evaluations find what they are told; `evaluate` until it ends the run."""

    def __init__(self, found: dict[str, Values], progress: Progress | None = None, **train: Any) -> None:
        self.saved: list[tuple[str | None, int]] = []
        self.logged: list[dict[str, float]] = []
        results = {name: iter(values) for name, values in found.items()}

        def evaluate(batches: Any, algorithm: Any, roles: Any) -> StepResult:
            list(batches())
            values = next(results[self.name])
            return StepResult(
                {'preference_loss': values['loss'], 'reward_accuracy': values.get('accuracy', 0.5)},
                values['loss'],
                dict.fromkeys(('preference_loss', 'reward_accuracy'), values.get('pairs', 1.0)),
                coefficients={'preference_loss': 1.0},
            )

        def loader(name: str) -> Any:
            def batches(epoch: int) -> list[Any]:
                self.name = name
                return []

            return SimpleNamespace(micro_batches=batches)

        settings = {'save_best': None, 'early_stopping_patience': None, **train}
        self.loop = OfflineLoop(
            cfgs=SimpleNamespace(
                train_cfgs=SimpleNamespace(sequence_parallel_size=1, **settings),
                data_cfgs=SimpleNamespace(max_skipped_ratio=0.5),
            ),
            algorithm=DPO(),
            engine=SimpleNamespace(evaluate=evaluate),
            roles={},
            objective=DPO(),
            training=None,
            watchers=SimpleNamespace(ask_to_stop=lambda: False),
            evaluation={name: loader(name) for name in found},
            rows=10,
            steps=100,
            progress=progress or Progress(),
            writer=SimpleNamespace(log=lambda step, values, prefix: self.logged.append(values)),
            console=SimpleNamespace(note=lambda words: None),
            skips=SimpleNamespace(add=lambda items: None, check=lambda *_: None, __len__=lambda: 0),
            save=lambda progress, with_state, name=None: self.saved.append((name, progress.step)),
            ema=None,
            previews=None,
            stop_asked=lambda: False,
        )
        self.loop.file_skips = lambda items: None

    def run(self, evaluations: int) -> int:
        """The step that the run ends with, one evaluation after each."""
        progress = self.loop.progress
        for _ in range(evaluations):
            progress.step += 1
            self.loop.evaluate()
            if progress.step == self.loop.steps:
                break
        return progress.step


def losses(*values: float) -> Values:
    return [{'loss': value} for value in values]


def test_the_best_loss_is_saved_and_patience_counts_from_it() -> None:
    judged = Judged(
        {'rows': losses(3.0, 2.0, 2.5, 1.9, 1.9, 2.0, 2.1, 1.0)}, save_best='loss', early_stopping_patience=3
    )
    assert judged.run(8) == 7
    assert judged.saved == [('slice_best', 1), ('slice_best', 2), ('slice_best', 4)]
    progress = judged.loop.progress
    assert (progress.best, progress.best_step, progress.evaluations_since_best) == (1.9, 4, 3)
    assert progress.last_evaluation['loss'] == 2.1


def test_other_metrics_are_better_when_higher() -> None:
    values = [{'loss': loss, 'accuracy': accuracy} for loss, accuracy in ((1.0, 0.5), (2.0, 0.7), (0.5, 0.6))]
    judged = Judged({'rows': values}, save_best='reward_accuracy')
    assert judged.run(3) == 3 and [step for _, step in judged.saved] == [1, 2]


def test_without_save_best_the_loss_decides_and_nothing_is_saved() -> None:
    judged = Judged({'rows': losses(1.0, 1.5, 1.4, 0.1)}, early_stopping_patience=2)
    assert judged.run(4) == 3 and judged.saved == []


def test_what_is_not_finite_is_never_the_best() -> None:
    judged = Judged({'rows': losses(math.nan, 2.0, math.nan, -math.inf, 1.5)}, save_best='loss')
    judged.run(5)
    assert [step for _, step in judged.saved] == [2, 5]


def test_a_metric_that_there_is_not_is_told_with_those_that_there_are() -> None:
    with pytest.raises(SettingsError, match="gives no 'acuracy'.*preference_loss, reward_accuracy"):
        Judged({'rows': losses(1.0)}, save_best='acuracy').run(1)


def test_sources_are_weighed_by_their_rows_and_told_apart() -> None:
    small, large = {'loss': 1.0, 'accuracy': 1.0, 'pairs': 1.0}, {'loss': 3.0, 'accuracy': 0.0, 'pairs': 3.0}
    judged = Judged({'a.jsonl': [small], 'b.jsonl': [large]}, save_best='loss')
    judged.run(1)
    [found] = judged.logged
    assert found['loss'] == found['preference_loss'] == 2.5 and found['reward_accuracy'] == 0.25
    assert found['a.jsonl/preference_loss'] == 1.0 and found['b.jsonl/reward_accuracy'] == 0.0
    assert judged.loop.progress.best == 2.5


def test_a_resumed_run_goes_on_with_the_best_so_far() -> None:
    before = Progress(step=4, best=1.0, best_step=2, evaluations_since_best=2)
    judged = Judged({'rows': losses(1.2, 0.5)}, before, save_best='loss', early_stopping_patience=3)
    assert judged.run(2) == 5 and judged.saved == []
    judged = Judged({'rows': losses(0.9, 0.5)}, Progress(step=4, best=1.0, best_step=2), save_best='loss')
    judged.run(2)
    assert [step for _, step in judged.saved] == [5, 6]


def test_a_run_keeps_its_best_model_by_two_sources_and_resumes_with_it(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    def pairs(count: int, seed: int) -> list[dict[str, Any]]:
        rows = text_rows(count, seed)
        return [{'prompt': row['instruction'], 'chosen': row['output'], 'rejected': 'no'} for row in rows]

    rows = write_rows(tmp_path / 'rows.jsonl', pairs(12, 0))
    # What was learned is wrong here, so that the evaluation gets worse.
    held_out = [write_rows(tmp_path / f'{name}.jsonl', [
        {**row, 'chosen': row['rejected'], 'rejected': row['chosen']} for row in pairs(count, 3)
    ]) for name, count in (('few', 1), ('many', 3))]  # fmt: skip
    argv = sft(
        tmp_path / 'run', tiny('llama'), rows, '--eval_datasets', *held_out, template='Preference',
        eval_template='Preference', eval_strategy='steps', eval_interval=1, save_best='loss',
        early_stopping_patience=2, save_interval=1, save_total_limit=9, lr_scheduler_type='constant',
    )  # fmt: skip
    output = succeed(argv, algorithm=RM)
    records = [record for record in lines(tmp_path / 'run' / 'metrics.jsonl') if 'eval/loss' in record]
    found = {record['step']: record['eval/loss'] for record in records}
    best = min(found, key=found.__getitem__)
    assert list(found) == list(range(1, best + 3)), 'it ends two evaluations after the best'
    assert f'stopping early: step {best} was better' in output
    few, many = (records[0][f'eval/{name}.jsonl/preference_loss'] for name in ('few', 'many'))
    assert records[0]['eval/preference_loss'] == pytest.approx((few + 3 * many) / 4, rel=1e-6)
    kept, numbered = (weights(tmp_path / 'run' / name) for name in ('slice_best', f'slice_{best}'))
    assert kept and all(torch.equal(kept[name], numbered[name]) for name in kept)

    again = tmp_path / 'run' / f'slice_{best + 1}'
    progress = json.loads((again / 'manifest.json').read_text())['progress']
    assert (progress['best'], progress['best_step']) == (found[best], best)
    output = succeed([*argv, '--resume', str(again)], algorithm=RM)
    assert f'stopping early: step {best} was better' in output
    manifest = json.loads((tmp_path / 'run' / 'slice_end' / 'manifest.json').read_text())['progress']
    assert manifest['step'] == best + 2 and manifest['best_step'] == best
