"""The report as one HTML file: no scripts, nothing loaded from elsewhere, and all data escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from rich.text import Text

from align_anything.cli.inspection.figures import Bin, histograms, stops, summary
from align_anything.cli.inspection.rows import Sample, SetSurvey, Survey, size_of
from align_anything.configs.saving import dump_resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.types import Example, Piece, Skipped
from align_anything.models.family import FamilySpec
from align_anything.reporting.html import make_page, show_conversation
from align_anything.trainers.runs.dry_run import show_example

LISTED_SKIPS = 1000
EXAMPLES_OF_A_REASON = 3
# The styles that show_example gives to trained tokens, media, and the rest.
CLASSES: Mapping[str, str] = {'bold green': 'trained', 'magenta': 'media', 'dim': 'prompt'}
STYLE = """
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow: auto; }
.tokens { font: 13px/1.5 ui-monospace, monospace; background: var(--soft); padding: .6rem; border-radius: 6px; }
.tokens .trained { color: var(--trained); font-weight: 600; } .tokens .media { color: var(--media); }
.tokens .prompt { opacity: .75; }
.stop { border-left: 4px solid #d33; padding-left: .8rem; }
.charts { display: flex; flex-wrap: wrap; gap: 2rem; } .chart td { padding: 0 .6rem 0 0; font-size: 13px; }
.bar { display: inline-block; height: .8em; background: #4a7fd6; vertical-align: middle; }
"""


def render_page(survey: Survey, cfgs: RunCfgs) -> str:
    """Returns the report. Secrets in the settings are left out."""
    sets = ''.join(_set(survey, found) for found in survey.sets)
    model = f'{cfgs.model_cfgs.model_name_or_path} ({survey.spec.model_type})'
    body = f"""<h1>Data of {escape(survey.run)}</h1>
<p>Model: {escape(model)}. No weights were read and nothing was trained.</p>
{sets}
<h2>Settings</h2><details><summary>all settings in force</summary><pre>{escape(dump_resolved(cfgs))}</pre></details>"""
    return make_page(survey.run, body, STYLE)


def _set(survey: Survey, found: SetSurvey) -> str:
    warning = stops(survey, found)
    rows = ''.join(f'<tr><th>{escape(n)}</th><td>{escape(v)}</td></tr>' for n, v in summary(survey, found).items())
    charts = ''.join(_chart(title, bins) for title, bins in histograms(found).items())
    samples = ''.join(_sample(sample, survey.spec) for sample in found.samples)
    return (
        f'<h2>{escape(found.name.capitalize())}</h2>'
        + (f'<p class="stop">{escape(warning)}</p>' if warning else '')
        + f'<table>{rows}</table><div class="charts">{charts}</div>'
        + _skips(found)
        + f'<h3>{len(found.samples)} samples</h3><p class="note">Trained tokens stand between ⟦ ⟧ and are green; '
        f'media tokens are counted.</p>{samples}'
    )


def _chart(title: str, bins: list[Bin]) -> str:
    most = max((item.rows for item in bins), default=1)
    rows = ''.join(
        f'<tr><td>{item.label}</td><td><span class="bar" style="width:{math.ceil(200 * item.rows / most)}px"></span> '
        f'{item.rows}</td></tr>'
        for item in bins
    )
    return f'<div><h3>{escape(title)}</h3><table class="chart">{rows}</table></div>'


def _skips(found: SetSurvey) -> str:
    if not found.skipped:
        return '<h3>Skipped</h3><p>None of the rows read.</p>'
    reasons = ''.join(
        f'<tr><td>{len(records)}</td><td>{escape(reason)}<div class="note">'
        + '<br>'.join(_record(record) for record in records[:EXAMPLES_OF_A_REASON])
        + '</div></td></tr>'
        for reason, records in found.reasons()
    )
    listed = ''.join(f'<tr><td class="text">{_record(record)}</td></tr>' for record in found.skipped[:LISTED_SKIPS])
    rest = len(found.skipped) - LISTED_SKIPS
    more = f'<p>and {rest} more</p>' if rest > 0 else ''
    return (
        f'<h3>Skipped</h3><table><tr><th>rows</th><th>reason</th></tr>{reasons}</table>'
        f'<details><summary>each row</summary><table>{listed}</table>{more}</details>'
    )


def _record(record: Skipped) -> str:
    return f'{escape(record.source)}: {escape(record.reason)}'


def _sample(sample: Sample, spec: FamilySpec) -> str:
    size = size_of(sample.example, spec)
    media = f', {size.media_tokens} of media' if size.media_tokens else ''
    several = len(sample.conversations) > 1
    chats = ''.join(
        (f'<h3>conversation {number}</h3>' if several else '') + show_conversation(conversation)
        for number, conversation in enumerate(sample.conversations, 1)
    )
    return (
        f'<div class="sample"><h3>{escape(size.source)}</h3>{chats}'
        f'<p class="note">{size.tokens} tokens, {size.trained} trained{media}</p>{_tokens(sample.example, spec)}</div>'
    )


def _tokens(example: Example, spec: FamilySpec) -> str:
    if len(example.responses) == 1:
        return _coloured(show_example(example, spec))
    pieces: list[tuple[str, Piece]] = [('prompt', example.prompt)]
    pieces += [(f'answer {number}', response) for number, response in enumerate(example.responses, 1)]
    return ''.join(
        f'<p class="note">{name}</p>{_coloured(show_example(Example(piece, []), spec))}' for name, piece in pieces
    )


def _coloured(text: Text) -> str:
    runs = (
        f'<span class="{CLASSES[str(span.style)]}">{escape(text.plain[span.start : span.end])}</span>'
        for span in text.spans
    )
    return f'<div class="tokens">{"".join(runs)}</div>'
