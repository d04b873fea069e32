"""Statistics of actions: exact or told how exact, whatever the order, however shared; and those that others publish."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.actions import Statistics
from align_anything.core.errors import DataError
from align_anything.datasets import running_statistics
from align_anything.datasets.action_statistics import (
    FILE,
    published_statistics,
    seen_in,
    write_seen,
)
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.datasets.running_statistics import Running, Summary
from align_anything.datasets.source_loading import load_sources
from align_anything.testing import episodes as made
from align_anything.testing.episodes import DIMENSIONS, episodes
from tests.datasets.fakes import encode, write_rows


def numbers(seed: int, episodes: int = 40) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (episodes,), generator=made).tolist()
    return [torch.randn(length, 3, generator=made, dtype=torch.float64).exp() for length in lengths]


def summary(*shares: list[torch.Tensor]) -> Summary:
    """What is told of episodes that several ranks have seen."""
    whole = Running()
    for share in shares:
        own = Running()
        for values in share:
            own.add(values)
        whole.merge(own)
    return whole.summary()


def test_exact_numbers() -> None:
    seen = numbers(0)
    found, steps = summary(seen), torch.cat(seen)
    assert found.steps == len(steps) and found.exact
    torch.testing.assert_close(torch.tensor(found.mean, dtype=torch.float64), steps.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.tensor(found.std, dtype=torch.float64), steps.std(0, correction=0), rtol=1e-9, atol=0
    )
    shares = torch.tensor([0.01, 0.99], dtype=torch.float64)
    torch.testing.assert_close(
        torch.tensor([found.low, found.high], dtype=torch.float64), torch.quantile(steps, shares, dim=0)
    )
    assert found.least == tuple(steps.min(0).values.tolist()) and found.most == tuple(steps.max(0).values.tolist())
    assert found.statistics('quantiles', [True] * 3).low == found.low
    assert found.statistics('min_max', [True] * 3).high == found.most


@pytest.mark.parametrize('distinct', [2**16, 2**8, 2**5])
def test_order_and_shares_change_nothing(distinct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_statistics, 'DISTINCT', distinct)
    seen = numbers(1)
    found = summary(seen)
    for seed in range(3):
        mixed = random.Random(seed).sample(seen, len(seen))
        assert summary(mixed) == found
        assert summary(mixed[::2], [], mixed[1::2]) == found


def test_a_histogram_says_how_exact_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_statistics, 'DISTINCT', 2**6)
    seen = numbers(2, 200)
    found, steps = summary(seen), torch.cat(seen)
    assert not found.exact
    shares = torch.quantile(steps, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    for dimension in range(3):
        width = found.width[dimension]
        # No wider than it must be: twice as many bins would be too many.
        assert len(torch.unique((steps[:, dimension] / width).floor())) <= 2**6
        assert len(torch.unique((steps[:, dimension] / width * 2).floor())) > 2**6
        assert abs(found.low[dimension] - shares[0, dimension]) <= width
        assert abs(found.high[dimension] - shares[1, dimension]) <= 2 * width
    # Of extremes, means and deviations nothing is lost.
    assert found.most == tuple(steps.max(0).values.tolist())
    torch.testing.assert_close(torch.tensor(found.mean, dtype=torch.float64), steps.mean(0), rtol=1e-12, atol=0)


def rows(source: Any, template: str, **options: Any) -> ExampleDataset:
    sources = load_sources(source, template, template_kwargs=options or None)
    return ExampleDataset(sources, SupervisedTask(encode), 'a_pair', frozenset({'image', 'action'}))


def test_a_pass_over_episodes(tmp_path: Path) -> None:
    recorded = episodes(6, 9, 4)
    source = made.write_lerobot(tmp_path / 'pusht', recorded)
    seen = seen_in(rows(str(source), 'LeRobot'))
    assert list(seen.values) == ['pusht'] and seen.episodes == 3 and not seen.skipped
    steps = torch.cat([torch.from_numpy(episode.actions).double() for episode in recorded])
    found = seen.values['pusht'].summary()
    torch.testing.assert_close(torch.tensor(found.mean, dtype=torch.float64), steps.mean(0), rtol=1e-12, atol=0)
    assert found.most[2] == 1 and found.least[2] == -1
    assert seen.states['pusht']['state'].summary().most == (pytest.approx(0.8), 2.0)
    assert seen.one('dimensions') == DIMENSIONS and seen.one('action_names') == ()
    assert seen.written() == '3 episodes; 19 steps of numbers, percentiles exact'
    file = write_seen(tmp_path, seen)
    assert file.name == FILE and json.loads(file.read_text())['actions']['pusht']['steps'] == 19
    # Other rows, and the same ones in another order.
    again = seen_in(rows(str(made.write_lerobot(tmp_path / 'b' / 'pusht', recorded[::-1])), 'LeRobot'))
    assert again.to_json() == seen.to_json()
    other = seen_in(rows(str(made.write_lerobot(tmp_path / 'c' / 'pusht', episodes(6, 9, 5))), 'LeRobot'))
    assert other.content != seen.content


def test_named_actions_pauses_and_broken_rows_are_counted(tmp_path: Path) -> None:
    chores = made.write_chores(tmp_path / 'PickupType', [*episodes(6, 9), made.Episode(2, 4, shift=1)])
    seen = seen_in(rows(str(chores), 'Chores'))
    assert (seen.episodes, seen.skipped) == (2, 1) and seen.names['done'] == 2 and not seen.values
    assert len(seen.one('action_names')) == 20
    libero = made.write_libero(tmp_path, episodes(8), pauses=[2, 3])
    assert seen_in(rows(str(libero), 'Libero')).written().endswith('; 2 steps that do nothing left out')


def test_what_has_nothing_in_common_is_refused(tmp_path: Path) -> None:
    a = made.write_lerobot(tmp_path / 'a', episodes(4))
    b = made.write_aloha(tmp_path / 'b', episodes(5))
    sources = load_sources([str(a), str(b)], ['LeRobot', 'Aloha'], template_kwargs=[{}, {'instruction': 'Go.'}])
    dataset = ExampleDataset(sources, SupervisedTask(encode), 'a_pair', frozenset({'image', 'action'}))
    seen = seen_in(dataset)
    assert sorted(seen.values) == ['a', 'b'] and seen_in(dataset, ['both', 'both']).values['both'].steps == 9
    with pytest.raises(DataError, match='the cameras of some rows are front, wrist, and those of others obs'):
        seen.one('cameras')
    with pytest.raises(DataError, match='some episodes have 3 numbers in a step and some 2'):
        whole = Running()
        whole.add(torch.ones(1, 3))
        whole.add(torch.ones(1, 2))
    with pytest.raises(DataError, match='no step was recorded'):
        Running().summary()
    wide = write_rows(tmp_path / 'wide.jsonl', [{'instruction': 'go', 'steps': [{'action': [1] * n}]} for n in (2, 3)])
    with pytest.raises(DataError, match='wide.jsonl:2: some episodes have 2 numbers in a step and some 3'):
        seen_in(rows(str(wide), 'Steps'))


COLUMNS = {'mean': [0.0, 0.5], 'std': [1.0, 0.5], 'min': [-2.0, 0.0], 'max': [2.0, 1.0], 'q01': [-1, 0], 'q99': [1, 1]}


def test_statistics_of_others(tmp_path: Path) -> None:
    (tmp_path / 'pusht' / 'meta').mkdir(parents=True)
    lerobot = tmp_path / 'pusht' / 'meta' / 'stats.json'
    lerobot.write_text(json.dumps({'action': COLUMNS, 'observation.state': COLUMNS}))
    expected = Statistics((-1.0, 0.0), (1.0, 1.0), (0.0, 0.5), (1.0, 0.5), (True, True))
    assert published_statistics(lerobot, 'quantiles') == {'pusht': expected}
    openvla = tmp_path / 'dataset_statistics.json'
    openvla.write_text(json.dumps({'bridge': {'action': {**COLUMNS, 'mask': [True, False]}, 'num_transitions': 3}}))
    found = published_statistics(openvla, 'min_max')['bridge']
    assert (found.low, found.high, found.mask) == ((-2.0, 0.0), (2.0, 1.0), (True, False))
    config = tmp_path / 'config.json'
    config.write_text(json.dumps({'norm_stats': {'bridge': {'action': COLUMNS}}}))
    assert published_statistics(config, 'quantiles') == {'bridge': expected}


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        ({'observation.state': COLUMNS}, 'has no statistics of actions'),
        ({'action': {'mean': [0], 'std': [1], 'min': [0], 'max': [1]}}, 'have no q01 and q99, which quantiles needs'),
        ({'a': {'action': {**COLUMNS, 'q01': [0]}}}, 'columns of different lengths'),
        ([], 'has no statistics'),
    ],
)
def test_files_without_them(content: Any, told: str, tmp_path: Path) -> None:
    file = tmp_path / 'stats.json'
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=told):
        published_statistics(file, 'quantiles')
