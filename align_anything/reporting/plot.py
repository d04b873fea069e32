"""The curves of a finished run, drawn from what it wrote."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from align_anything.core.files import sync_folder
from align_anything.reporting.metrics import METRICS_FILE, TIMINGS_FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_FILE = 'metrics.png'
FIRST_PANELS = ('reward', 'loss', 'learning_rate', 'tokens_per_second')
COLORS = {'train': 'tab:blue', 'eval': 'tab:orange'}
SMOOTH_FROM = 50

Curve = list[tuple[int, float]]


def plot_metrics(output_dir: str | Path) -> Path | None:
    """Draws one panel per metric, train and eval together, into `<output_dir>/metrics.png`; returns its path.

    Returns None when the run wrote no metrics. Values that are not finite are left out of the curves.
    """
    folder = Path(output_dir)
    panels = read_panels(folder)
    if not panels:
        return None

    # The object interface draws to the Agg canvas and leaves the caller's matplotlib backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(6.5 * columns, 3.6 * rows), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, curves) in zip(axes, panels.items(), strict=False):
        for label, curve in curves.items():
            _plot(axis, label, curve)
        axis.set_title(name.replace('_', ' '))
        axis.set_xlabel('optimizer step')
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    draft = folder / f'.{PLOT_FILE}.tmp'
    figure.savefig(draft, dpi=120, format='png')
    draft.replace(folder / PLOT_FILE)
    sync_folder(folder)
    return folder / PLOT_FILE


def read_panels(folder: Path) -> dict[str, dict[str, Curve]]:
    """Returns metric name → `train` or `eval` → points, reward and loss first; one without a finite value is absent."""
    panels: dict[str, dict[str, Curve]] = defaultdict(lambda: defaultdict(list))
    for record in [*read_metrics(folder / METRICS_FILE), *read_metrics(folder / TIMINGS_FILE)]:
        for key, value in record.items():
            prefix, _, name = key.partition('/')
            if name and math.isfinite(float(value)):
                panels[name][prefix].append((record['step'], float(value)))
    order = [name for name in FIRST_PANELS if name in panels] + sorted(set(panels) - set(FIRST_PANELS))
    return {name: dict(panels[name]) for name in order}


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


def _plot(axis: Axes, label: str, curve: Curve) -> None:
    steps = [step for step, _ in curve]
    values = [value for _, value in curve]
    color = COLORS.get(label)
    if len(values) < SMOOTH_FROM:
        axis.plot(steps, values, label=label, color=color, marker='o', markersize=3, linewidth=1.5)
        return
    (raw,) = axis.plot(steps, values, color=color, alpha=0.25, linewidth=1)
    axis.plot(steps, smooth(values, max(2, len(values) // 50)), label=label, color=raw.get_color(), linewidth=1.8)
