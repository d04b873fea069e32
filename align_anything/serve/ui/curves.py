"""The curves of a run, drawn for a page: pictures that need no script and follow its colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from align_anything.reporting.panels import Curve, Panel, arrange, constants, read_curves

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 10, 22
POINTS = 400
PANELS = 12
COLOURS = ('#4a7fd6', '#e08a2c', '#3aa76d', '#c8553d', '#8e6bbf', '#7d7d7d')


def curves_html(folder: Path) -> str:
    """Returns the curves of the run in a folder, the most telling first; an empty text where there are none yet."""
    curves = read_curves(folder)
    panels = arrange(curves)[:PANELS]
    if not panels:
        return ''
    still = ', '.join(f'{name} {value:.4g}' for name, value in constants(curves).items())
    note = f'<p class="note">constant: {escape(still)}</p>' if still else ''
    return f'<div class="curves">{"".join(map(panel_html, panels))}</div>{note}'


def panel_html(panel: Panel) -> str:
    """Returns one panel: a title, the curves on their axes, and what each of them is."""
    named = [(f'{label} {name}', curve) for name, own in panel.curves.items() for label, curve in own.items()]
    points = [point for _, curve in named for point in curve]
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = _range(min(values), max(values))
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(step: float, value: float) -> str:
        across = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        down = TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f'{across:.1f},{down:.1f}'

    lines = []
    for number, (_, curve) in enumerate(named):
        colour = COLOURS[number % len(COLOURS)]
        shown = thinned(curve)
        path = ' '.join(place(*point) for point in shown)
        lines.append(f'<polyline points="{path}" stroke="{colour}"/>')
        dots = shown if len(shown) <= WIDTH // 12 else shown[-1:]
        for step, value in dots:
            x, y = place(step, value).split(',')
            told = f'<title>{step}: {value:.5g}</title>'
            lines.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}">{told}</circle>')
    rulers = []
    for value in (low, (low + high) / 2, high):
        y = place(first, value).partition(',')[2]
        rulers.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        rulers.append(f'<text x="{LEFT - 5}" y="{y}" dy="0.32em" text-anchor="end">{value:.3g}</text>')
    rulers += [
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{first}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">step {max(steps)}</text>',
    ]
    keys = ''.join(
        f'<span><i style="background:{COLOURS[number % len(COLOURS)]}"></i>{escape(name)} {curve[-1][1]:.4g}</span>'
        for number, (name, curve) in enumerate(named)
    )
    unit = f' <small>{escape(panel.unit)}</small>' if panel.unit else ''
    return (
        f'<figure class="curve"><figcaption>{escape(panel.title)}{unit}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><g class="rulers">{"".join(rulers)}</g>'
        f'<g class="lines">{"".join(lines)}</g></svg><div class="keys">{keys}</div></figure>'
    )


def thinned(curve: Curve, points: int = POINTS) -> Sequence[tuple[int, float]]:
    """Returns at most about so many points of a curve: of each stretch the lowest and the highest, and the last."""
    if len(curve) <= points:
        return curve
    size = math.ceil(2 * len(curve) / points)
    kept = []
    for start in range(0, len(curve), size):
        stretch = curve[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept if kept[-1] == curve[-1] else [*kept, curve[-1]]


def _range(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - margin, high + margin
