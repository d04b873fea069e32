"""A picture to look into more closely before answering."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from align_anything.core.errors import WorldError
from align_anything.datasets.media.image import scaled_size
from align_anything.environments.base import Environment, Observation, Said, Step, register_environment
from align_anything.environments.golden import is_golden

RULES = (
    'You may look closer: zoom(left, top, right, bottom) shows that part of the picture, in thousandths of its width '
    'and height, such as zoom(0, 0, 500, 500). Answer when you know.'
)
CALL = re.compile(r'zoom\s*\(([^()]*)\)')
NUMBERS = re.compile(r'-?\d+(?:\.\d+)?')
WHOLE, THINNEST, NARROWEST = 1000, 10, 20
"""Thousandths of a side; fewest of them that a part may have; and how many times longer one side may be."""


@register_environment('zoom')
class Zoom(Environment):
    """A question to the first picture of the row, of which parts may be looked at.

    A turn that calls no zoom is the answer; it is worth 1 where it ends with the golden one (`ground_truth`). Without a
    golden answer nothing is rewarded.

    Args:
        zooms: most parts that are shown.
        pixels: that each of them is brought to, whatever its size.
        price: what each of them takes off the reward.
    """

    def __init__(self, zooms: int = 4, pixels: int = 448 * 448, price: float = 0.0) -> None:
        self._zooms, self._pixels, self._price = zooms, pixels, price
        self._picture: Any = None
        self._golden: str | None = None
        self._left = zooms

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        """Takes the picture of the row, and tells how to look into it."""
        parts = [part for message in row['messages'] for part in message['content'] if part['type'] == 'image']
        if not parts:
            raise WorldError('the row has no picture to look into.')
        golden = row.get('ground_truth')
        self._picture, self._left = parts[0]['image'], self._zooms
        self._golden = None if golden is None else str(golden)
        self.succeeds = golden is not None
        return Observation(RULES)

    def step(self, said: Said) -> Step:
        """Shows what is asked for, or takes the answer."""
        found = CALL.search(said.text)
        if found is None:
            return self._judged(said.text)
        box = [float(number) for number in NUMBERS.findall(found[1])]
        if not self._left:
            return Step(Observation('There is nothing more to see: answer.'))
        problem = _problem(box)
        if problem:
            return Step(Observation(problem), info={'tool_errors': 1})
        self._left -= 1
        return Step(Observation([{'role': 'user', 'content': [{'type': 'image', 'image': self._part(box)}]}]))

    def _judged(self, answer: str) -> Step:
        if self._golden is None:
            return Step(done=True)
        right = is_golden(answer, self._golden)
        return Step(reward=float(right) - self._price * (self._zooms - self._left), done=True, info={'success': right})

    def _part(self, box: list[float]) -> Any:
        width, height = self._picture.size
        left, top, right, bottom = (
            number / WHOLE * side for number, side in zip(box, (width, height, width, height), strict=True)
        )
        size = scaled_size(round(max(1, right - left)), round(max(1, bottom - top)), self._pixels, self._pixels)
        return self._picture.resize(size, box=(left, top, max(right, left + 1), max(bottom, top + 1)))


def _problem(box: list[float]) -> str:
    """What is wrong with the corners of a part, an empty text for nothing."""
    if len(box) != 4:
        return 'zoom takes four numbers: left, top, right, bottom.'
    left, top, right, bottom = box
    if not (0 <= left < right <= WHOLE and 0 <= top < bottom <= WHOLE):
        return f'zoom takes numbers from 0 to {WHOLE}, left less than right and top less than bottom.'
    width, height = right - left, bottom - top
    if min(width, height) < THINNEST or max(width, height) > NARROWEST * min(width, height):
        return f'That part is too thin: each side has {THINNEST} at least, and a {NARROWEST}th of the other.'
    return ''
