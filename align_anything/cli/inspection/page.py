"""The report as one HTML file: no scripts, nothing loaded from elsewhere, and all data escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from align_anything.cli.inspection.figures import histograms, note_on, stops, summary
from align_anything.cli.inspection.rows import Sample, SetSurvey, Survey, size_of
from align_anything.configs.saving import dump_resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.types import Example
from align_anything.datasets.media.writing import data_uri
from align_anything.models.encoding import truncate
from align_anything.models.family import FamilySpec
from align_anything.reporting.html import render
from align_anything.trainers.runs.dry_run import show_example

LISTED_SKIPS = 1000
GIF_TYPE = 'image/gif'
EXAMPLES_OF_A_REASON = 3
# The styles that show_example gives to trained tokens, media, and the rest.
CLASSES: Mapping[str, str] = {'bold green': 'trained', 'magenta': 'media', 'dim': 'prompt'}


def render_page(survey: Survey, cfgs: RunCfgs) -> str:
    """Returns the report. Secrets in the settings are left out."""
    return render(
        'inspect.html.jinja',
        run=survey.run,
        model=f'{cfgs.model_cfgs.model_name_or_path} ({survey.spec.model_type})',
        denoises=survey.denoises,
        sets=[_set(survey, found) for found in survey.sets],
        settings=dump_resolved(cfgs),
        listed_skips=LISTED_SKIPS,
        examples_of_a_reason=EXAMPLES_OF_A_REASON,
    )


def _set(survey: Survey, found: SetSurvey) -> dict[str, Any]:
    return {
        'name': found.name.capitalize(),
        'warning': stops(survey, found),
        'summary': summary(survey, found),
        'charts': histograms(survey, found),
        'skipped': found.skipped,
        'reasons': found.reasons(),
        'replays': [(replay.source, data_uri(GIF_TYPE, replay.animation)) for replay in found.replays],
        'samples': [_sample(sample, survey) for sample in found.samples],
    }


def _sample(sample: Sample, survey: Survey) -> dict[str, Any]:
    size = size_of(sample.example, survey.spec)
    return {
        'source': size.source,
        'note': note_on(size, survey),
        'conversations': sample.conversations,
        'pieces': _pieces(sample.example, survey.spec),
    }


def _pieces(example: Example, spec: FamilySpec) -> list[tuple[str, list[tuple[str, str]]]]:
    """What stands over each list of tokens, and the tokens: of the whole, or of prompt and answers apart."""
    if len(example.responses) == 1:
        return [('', _coloured(show_example(example, spec)))]
    nothing = truncate(example.prompt, 0)
    apart = [('prompt', Example(example.prompt, []))]
    apart += [(f'answer {number}', Example(nothing, [one])) for number, one in enumerate(example.responses, 1)]
    return [(name, _coloured(show_example(part, spec))) for name, part in apart]


def _coloured(text: Text) -> list[tuple[str, str]]:
    """The class and the text of each run of tokens."""
    return [(CLASSES[str(span.style)], text.plain[span.start : span.end]) for span in text.spans]
