"""Whether a picture shows what its prompt asked for: so many things, of such colours and forms, as GenEval asks.

Ghosh et al., 2023 (arXiv:2310.11513) find things by a detector. Here regions of plain pictures are told without a
model (`shapes`), or a model that reads pictures is asked how many there are (`objects`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from pydantic import PositiveInt

from align_anything.core.errors import DataError
from align_anything.metrics.asking import ask
from align_anything.metrics.base import Measured, register_metric
from align_anything.metrics.functions.vqa import NUMBERS
from align_anything.metrics.regions import Region, is_same_colour, regions_of
from align_anything.metrics.samples import Sample, Samples
from align_anything.rewards.frozen import Device

QUESTION = 'How many {thing} are in the picture? Answer with one number.'
KEYS = {'colour', 'color', 'shape', 'object', 'count'}
PLURAL = {'s': 'es', 'x': 'es', 'h': 'es'}
COUNTS = re.compile(r'\d+|\b(?:' + '|'.join(NUMBERS) + r')\b')


def wanted_of(sample: Sample, column: str) -> list[dict[str, Any]]:
    """Returns what a row asks for: a record for each thing, with `count` (1 where it has none) and what it is.

    Raises DataError for a row without any, or with a key that nothing reads.
    """
    value = sample.meta.get(column)
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
        raise DataError(
            f"{sample.source} does not say what its picture should show: meta['{column}'] should be a list of records "
            f'such as {{"colour": "red", "shape": "circle", "count": 2}}, but is {str(value)[:60]!r}. Give it, and '
            'keep it: keep_columns of the template Prompts.'
        )
    found = []
    for item in value:
        item = {key: text for key, text in item.items() if text is not None}
        if item.keys() - KEYS or not item.keys() - {'count'}:
            raise DataError(f"{sample.source}: meta['{column}'] has {item}; its keys are {', '.join(sorted(KEYS))}.")
        colour = item.get('colour', item.get('color'))
        thing = {'shape': item.get('shape'), 'object': item.get('object'), 'colour': colour}
        found.append({'count': int(item.get('count', 1)), **{key: text for key, text in thing.items() if text}})
    return found


def shows(regions: Sequence[Region], wanted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether regions are what is wanted: of each thing exactly so many."""
    return all(_count(regions, item) == item['count'] for item in wanted)


def _count(regions: Sequence[Region], item: Mapping[str, Any]) -> int:
    form = item.get('shape', item.get('object'))
    return sum(
        (form is None or region.form == form)
        and ('colour' not in item or is_same_colour(region.colour, item['colour']))
        for region in regions
    )


@register_metric('shapes', reads=('image', 'video'), is_pure=True)
def shapes(samples: Samples, *, column: str = 'objects') -> list[float | None]:
    """1 for a plain picture with exactly the coloured shapes that its row asks for, 0 for others; without a model.

    It tells circles, squares, bars and triangles of one colour on a ground of another apart, and means nothing for
    photographs. Of several pictures, and frames, it is the share.

    Args:
        samples: the responses.
        column: column of the row's meta with records of `colour`, `shape` and `count`.
    """
    values: list[float | None] = []
    for sample in samples:
        wanted = wanted_of(sample, column)
        right = [shows(regions_of(picture), wanted) for picture in _pictures(sample)]
        values.append(sum(right) / len(right) if right else 0.0)
    return values


@register_metric('objects', reads=('image', 'video'))
def objects(
    samples: Samples,
    *,
    model: str,
    column: str = 'objects',
    question: str = QUESTION,
    batch_size: PositiveInt = 16,
    device: Device = None,
) -> Measured:
    """1 for a picture in which a model that reads pictures counts exactly what its row asks for, 0 for others.

    Of a row with several things all must be right. An answer without a number is a wrong one, and is counted.

    Args:
        samples: the responses.
        model: checkpoint that reads pictures and writes text.
        column: column of the row's meta with records of `colour`, `object` and `count`.
        question: what the model is asked of each thing, `{thing}` being its name.
        batch_size: questions that are answered at once.
        device: where it runs; None is the device of this rank.
    """
    asked, owners = [], []
    for number, sample in enumerate(samples):
        for item in wanted_of(sample, column):
            for picture in _pictures(sample):
                asked.append((picture, question.format(thing=name_of(item)), item['count']))
                owners.append(number)
    said = ask(model, [(picture, words) for picture, words, _ in asked], batch_size, device)
    counts = [count_in(text) for text in said]
    right: dict[int, list[bool]] = {}
    for owner, count, (_, _, wanted) in zip(owners, counts, asked, strict=True):
        right.setdefault(owner, []).append(count == wanted)
    values = [float(all(right[number])) if number in right else 0.0 for number in range(len(samples))]
    return Measured(values, details={'questions': len(asked), 'without_a_number': counts.count(None)})


def name_of(item: Mapping[str, Any]) -> str:
    """Returns how a question names a thing, in the plural."""
    thing = str(item.get('object', item.get('shape', 'thing')))
    plural = thing + PLURAL.get(thing[-1], 's')
    return f'{item["colour"]} {plural}' if 'colour' in item else plural


def count_in(text: str) -> int | None:
    """Returns the first number in a text, in digits or as a word; None without one."""
    found = COUNTS.search(text.casefold())
    return None if found is None else int(NUMBERS.get(found[0], found[0]))


def _pictures(sample: Sample) -> list[Any]:
    frames = [Image.fromarray(frame) for video in sample.media('video') for frame in video.frames]
    return [*sample.media('image'), *frames]
