"""The curves of a finished run, drawn from what it wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from align_anything.core.files import sync_folder
from align_anything.reporting.panels import Curve, Panel, arrange, constants, read_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_FILE = 'metrics.png'
MORE_FILE = 'metrics_more.png'
MAX_PANELS, COLUMNS = 12, 3
NOTE_WIDTH, NOTE_LENGTH = 150, 600
COLORS = {'train': 'tab:blue', 'eval': 'tab:orange'}
STYLES = {'train': '-', 'eval': '--'}
SMOOTH_FROM = 50


def plot_metrics(output_dir: str | Path) -> Path | None:
    """Draws the metrics that move over the run into `<output_dir>/metrics.png`; returns its path.

    Metrics of one unit and about one size share a panel. There are at most twelve panels; what is left is drawn into
    `metrics_more.png`. Constant metrics are written below with their value. Returns None when the run wrote no
    metrics. Values that are missing or not finite are left out of the curves.
    """
    folder = Path(output_dir)
    curves = read_curves(folder)
    panels = arrange(curves)
    (folder / MORE_FILE).unlink(missing_ok=True)
    if not panels:
        return None
    still = ', '.join(f'{name} {value:.4g}' for name, value in constants(curves).items())
    _draw(folder / PLOT_FILE, panels[:MAX_PANELS], f'constant: {still}' if still else '')
    if len(panels) > MAX_PANELS:
        _draw(folder / MORE_FILE, panels[MAX_PANELS:])
    sync_folder(folder)
    return folder / PLOT_FILE


def _draw(path: Path, panels: Sequence[Panel], note: str = '') -> None:
    # The object interface draws to the Agg canvas and leaves the caller's matplotlib backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.6 * columns, 3.4 * rows), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _plot_panel(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if note:
        figure.supxlabel(fill(note[:NOTE_LENGTH], NOTE_WIDTH), fontsize='small', parse_math=False)
    draft = path.with_name(f'.{path.name}.tmp')
    figure.savefig(draft, dpi=120, format='png')
    draft.replace(path)


def smooth(values: list[float], reach: int) -> list[float]:
    """Returns the mean of each value and `reach` neighbours on both sides, fewer near the ends.

    Both sides lose the same number there, so a straight line (a learning rate) stays where it is.
    """
    sums = [0.0, *accumulate(values)]
    means = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        means.append((sums[index + near + 1] - sums[index - near]) / (2 * near + 1))
    return means


def _plot_panel(axis: Axes, panel: Panel) -> None:
    """Several metrics have a colour each and dashes for evaluation; a single one a colour for each of the two."""
    several = len(panel.curves) > 1
    for number, (name, curves) in enumerate(panel.curves.items()):
        for label, curve in curves.items():
            color = f'C{number}' if several else COLORS.get(label)
            told = f'{label} {name}' if several and len(curves) > 1 else name if several else label
            _plot(axis, curve, told, color, STYLES.get(label, '-') if several else '-')
    axis.set_title(panel.title, parse_math=False)
    axis.set_ylabel(panel.unit)
    axis.set_xlabel('optimizer step')
    axis.tick_params(labelbottom=True)
    axis.grid(alpha=0.3)
    if several or len(next(iter(panel.curves.values()))) > 1:
        for text in axis.legend(fontsize='small', loc='upper left', framealpha=0.6).get_texts():
            text.set_parse_math(False)


def _plot(axis: Axes, curve: Curve, label: str, color: str | None, style: str) -> None:
    steps = [step for step, _ in curve]
    values = [value for _, value in curve]
    if len(values) < SMOOTH_FROM:
        axis.plot(steps, values, label=label, color=color, linestyle=style, marker='o', markersize=3, linewidth=1.5)
        return
    (raw,) = axis.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
    means = smooth(values, max(2, len(values) // 50))
    axis.plot(steps, means, label=label, color=raw.get_color(), linestyle=style, linewidth=1.8)
