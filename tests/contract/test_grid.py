"""Every modality pair has a run for every algorithm: the grid has no holes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from align_anything import algorithms
from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import runs
from align_anything.configs.resolve import resolve

CONFIGS = Path(algorithms.__file__).parents[1] / 'configs' / 'train'
GRID = [(pair, name) for pair in runs() for name in sorted(known_algorithms())]


@pytest.mark.parametrize(('pair', 'name'), GRID)
def test_a_pair_has_the_algorithm(pair: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    its_pair, names = runs()[pair]
    assert name in names, f'no trainers/{pair}/{name}.py'
    leaf = importlib.import_module(f'align_anything.trainers.{pair}.{name}')
    started = []
    monkeypatch.setattr(leaf, 'launch', lambda *given: started.append(given))
    leaf.main()
    assert started == [(its_pair, known_algorithms()[name])]


@pytest.mark.parametrize(('pair', 'name'), GRID)
def test_its_settings_resolve_and_say_what_they_are(pair: str, name: str) -> None:
    needed = ['--model_name_or_path', 'm', '--train_datasets', 'd', '--train_template', 't', '--output_dir', 'o']
    algorithm = known_algorithms()[name]
    resolved = resolve(pair, name, algorithm, known_algorithms(), needed, {})
    # What trains nothing has nothing to track, and gets no settings that it would refuse.
    assert resolved.cfgs.logger_cfgs.log_run_name == (name if algorithm.trains else None)
    assert (CONFIGS / f'{name}.yaml').exists()
