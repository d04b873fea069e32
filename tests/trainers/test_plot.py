"""The curves of a run: what moves, with what it shares an axis, and what is left for the second file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from align_anything.reporting.metrics import MetricsWriter
from align_anything.reporting.panels import MAX_CURVES, arrange, constants, read_curves
from align_anything.reporting.plot import plot_metrics, smooth


def write(folder: Path, *steps: Mapping[str, Any], prefix: str = 'train') -> Path:
    writer = MetricsWriter(folder)
    for step, values in enumerate(steps, 1):
        writer.log(step, values, prefix=prefix)
    writer.close()
    return folder


def moving(*names: str, size: float = 1.0) -> list[dict[str, float]]:
    return [{name: size * step for name in names} for step in (1, 2, 3)]


def layout(folder: Path) -> list[list[str]]:
    return [list(panel.curves) for panel in arrange(read_curves(folder))]


def test_constants_and_the_epoch_carry_no_news(tmp_path: Path) -> None:
    steps = [{'loss': 1 / step, 'skipped': 0.0, 'learning_rate': 1e-5, 'epoch': step / 3} for step in (1, 2, 3)]
    write(tmp_path, *steps)
    assert layout(tmp_path) == [['loss']]
    assert constants(read_curves(tmp_path)) == {'skipped': 0.0, 'learning_rate': 1e-5}


def test_the_same_value_once_or_of_two_kinds(tmp_path: Path) -> None:
    write(tmp_path, {'loss': 1.0, 'reward': 0.0})
    assert layout(tmp_path) == [['reward'], ['loss']], 'one point is no constant'
    writer = MetricsWriter(tmp_path / 'two')
    writer.log(1, {'loss': 1.0})
    writer.log(1, {'loss': 2.0}, prefix='eval')
    writer.close()
    assert layout(tmp_path / 'two') == [['loss']], 'the evaluation differs from training'


def test_a_run_in_which_nothing_moves_is_drawn_all_the_same(tmp_path: Path) -> None:
    write(tmp_path, *[{'loss': 1.0, 'epoch': 1.0}] * 3)
    assert layout(tmp_path) == [['loss'], ['epoch']]


def test_what_has_one_unit_and_one_size_shares_a_panel(tmp_path: Path) -> None:
    names = ('reward', 'reward/right', 'seconds/update', 'seconds/sync', 'loss', 'policy_loss', 'own_metric', 'kl')
    write(tmp_path, *moving(*names))
    assert layout(tmp_path) == [
        ['reward', 'reward/right'],
        ['loss'],
        ['kl'],
        ['policy_loss'],
        ['seconds/update', 'seconds/sync'],
        ['own_metric'],
    ]
    units = {panel.title: panel.unit for panel in arrange(read_curves(tmp_path))}
    assert units == {'rewards': 'reward', 'loss': 'loss', 'kl': 'nats', 'policy loss': 'loss', 'time': 's'} | {
        'own metric': ''
    }


def test_a_metric_that_would_be_a_flat_line_beside_another_has_its_own_panel(tmp_path: Path) -> None:
    steps = [{'reward': 0.1 * step, 'reward/length': 100.0 * step, 'reward/large': 10.0 * step} for step in (1, 2)]
    write(tmp_path, *steps)
    assert layout(tmp_path) == [['reward/length', 'reward/large'], ['reward']]


def test_a_panel_has_so_many_curves_and_sources_come_last(tmp_path: Path) -> None:
    many = [f'reward/r{number}' for number in range(MAX_CURVES + 1)]
    write(tmp_path, *moving('a/reward', 'b/reward', 'grad_norm', *many, 'critic/explained_variance'))
    assert [len(names) for names in layout(tmp_path)] == [MAX_CURVES, 1, 1, 2, 1]
    assert layout(tmp_path)[3] == ['a/reward', 'b/reward']


def test_memory_is_drawn_in_gibibytes(tmp_path: Path) -> None:
    write(tmp_path, *moving('peak_memory', size=2.0**30))
    (panel,) = arrange(read_curves(tmp_path))
    assert panel.unit == 'GiB' and panel.curves['peak_memory']['train'] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_steps_without_a_value_are_borne(tmp_path: Path) -> None:
    write(tmp_path, {'loss': 1.0}, {}, {'reward': 0.5, 'loss': float('nan')}, {'loss': 3.0, 'reward': float('inf')})
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 5, "train/loss": null}\n')
    curves = read_curves(tmp_path)
    assert curves == {'loss': {'train': [(1, 1.0), (4, 3.0)]}, 'reward': {'train': [(3, 0.5)]}}
    assert plot_metrics(tmp_path) == tmp_path / 'metrics.png'


def test_twelve_panels_and_the_rest_in_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    save = Figure.savefig

    def remember(figure: Figure, path: Path, **options: Any) -> None:
        drawn.append([axis.get_title() for axis in figure.axes if axis.get_visible()])
        save(figure, path, **options)

    monkeypatch.setattr(Figure, 'savefig', remember)
    write(tmp_path, *[{f'own_{number:02}': float(step) for number in range(14)} for step in (1, 2)])
    assert plot_metrics(tmp_path) == tmp_path / 'metrics.png'
    assert drawn == [[f'own {number:02}' for number in range(12)], ['own 12', 'own 13']]
    assert {path.name for path in tmp_path.glob('*.png')} == {'metrics.png', 'metrics_more.png'}
    write(tmp_path, *moving('loss'))
    plot_metrics(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *('metrics.jsonl', 'metrics.jsonl.old', 'timings.jsonl', 'timings.jsonl.old', 'metrics.png')
    }, 'no picture of an earlier run stays beside the new one'


def test_axes_have_units_and_curves_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    # A dollar sign and an underscore, as a dataset may have in its name, are text and no formula.
    writer = MetricsWriter(tmp_path)
    for step in range(1, 61):
        writer.log(step, {'loss': 1 / step, 'reward/$a_{': step, 'reward/b': 2 * step, 'skipped': 0})
        if step % 20 == 0:
            writer.log(step, {'loss': 2 / step, 'reward/b': 3 * step}, prefix='eval')
    writer.close()
    with Image.open(plot_metrics(tmp_path)) as picture:
        assert picture.size == (1344, 408)  # two columns of 5.6 inches, a row of 3.4, 120 dots an inch
        assert len(picture.convert('RGB').getcolors(2**24)) > 50
    (figure,) = figures
    rewards, loss = figure.axes
    assert (rewards.get_ylabel(), rewards.get_xlabel(), loss.get_ylabel()) == ('reward', 'optimizer step', 'loss')
    names = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in (rewards, loss)]
    assert names == [['train reward/b', 'eval reward/b', 'reward/$a_{'], ['train', 'eval']]
    # The value of each step, faint, and the means of 2 * 2 + 1 of them over it.
    raw, means, evaluated = loss.get_lines()
    assert list(raw.get_ydata()) == [1 / step for step in range(1, 61)] and len(evaluated.get_xdata()) == 3
    assert means.get_ydata()[30] == pytest.approx(sum(1 / step for step in range(29, 34)) / 5)
    assert rewards.get_shared_x_axes().joined(rewards, loss)
    assert figure.get_supxlabel() == 'constant: skipped 0'


def test_plot_of_a_run_that_wrote_nothing(tmp_path: Path) -> None:
    assert plot_metrics(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_smooth_is_a_centred_mean_that_keeps_straight_lines() -> None:
    # ends as they are, then (1+4+1)/3, (4+1+1)/3, (1+1+7)/3
    assert smooth([1, 4, 1, 1, 7], 1) == [1, 2, 2, 3, 7]
    assert smooth([1, 2, 3, 4, 5, 6], 2) == [1, 2, 3, 4, 5, 6]


def test_shares_of_rewards_and_of_experts_and_counts_of_rows_share_panels(tmp_path: Path) -> None:
    experts = [f'expert_load/{number}' for number in range(4)]
    rows = ('filtered', 'truncated_answers', 'samples')
    write(tmp_path, *moving(*experts, 'abstained/a', 'abstained/b', 'truncated', *rows))
    panels = arrange(read_curves(tmp_path))
    assert [(panel.title, panel.unit, list(panel.curves)) for panel in panels] == [
        ('shares', 'share', ['abstained/a', 'abstained/b', 'truncated']),
        ('rows', 'rows', list(rows)),
        ('load of experts', 'share', experts),
    ]
