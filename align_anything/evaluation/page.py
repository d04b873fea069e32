"""The page of an evaluation: its tables, and the first prompts with what was answered, media shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation
from align_anything.evaluation.results import as_tables, per_response
from align_anything.metrics.base import Measured, Metric
from align_anything.metrics.samples import Sample, Samples
from align_anything.reporting.html import render

SHOWN = 100
"""Prompts on the page; samples.jsonl has all."""


def page_of(
    results: Mapping[str, Any],
    samples: Samples,
    found: Mapping[str, tuple[Metric, Measured]],
    others: Samples | None = None,
) -> str:
    """Returns the page, in one file that needs no other and runs nothing.

    Args:
        results: as `results.json` has them.
        samples: the responses.
        found: what metrics say of them, by name.
        others: those of the checkpoint that this one is compared with, which are shown below.
    """
    names = [name for name, (_, own) in found.items() if own.value is None]
    numbers = {id(sample): number for number, sample in enumerate(samples)}
    prompts = []
    for prompt, own in list(samples.by_prompt.items())[:SHOWN]:
        rows = [
            _row(sample, [_cell(per_response(found[name][1], numbers[id(sample)])) for name in names]) for sample in own
        ]
        theirs = others.by_prompt.get(prompt, []) if others is not None else []
        rows += [_row(sample, ['' for _ in names], other=True) for sample in theirs]
        prompts.append(
            {'source': own[0].source, 'conversation': _asked(own[0]), 'golden': _golden(own[0]), 'rows': rows}
        )
    left = len(samples.by_prompt) - len(prompts)
    return render('results.html.jinja', tables=as_tables(results), names=names, prompts=prompts, left=left)


def _row(sample: Sample, cells: Sequence[str], other: bool = False) -> dict[str, Any]:
    try:
        parts = sample.parts()
    except SampleError as error:
        parts = [{'type': 'text', 'text': str(error)}]
    return {'text': sample.text, 'parts': parts, 'cells': cells, 'other': other}


def _asked(sample: Sample) -> Conversation:
    try:
        return sample.conversation()
    except SampleError as error:  # a file that was moved since it was read
        return [{'role': 'user', 'content': [{'type': 'text', 'text': str(error)}]}]


def _golden(sample: Sample) -> str | None:
    golden = sample.meta.get('ground_truth')
    return None if golden is None else str(golden)


def _cell(value: float | None) -> str:
    return '–' if value is None else f'{value:.4g}'
