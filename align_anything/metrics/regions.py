"""What a plain picture shows, without a model: regions of one colour on a ground, their colours and forms."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import ImageColor

SIDE = 256
"""Larger pictures are made smaller before they are looked at."""
CONTRAST = 60.0
"""Distance from the ground, in red, green and blue of 255, from which a pixel is of a region."""
SMALLEST = 0.01
"""Share of the picture that a region has at least."""

HUES = {'red': 0, 'orange': 30, 'yellow': 58, 'green': 120, 'cyan': 180, 'blue': 235, 'purple': 275, 'pink': 325}
GREY = 0.2
"""Saturation below which a colour has no hue."""
BAR = 1.6
"""Longer side over the shorter one from which on what fills its box is a bar and no square."""


class Region(NamedTuple):
    """A region.

    Attributes:
        colour: its name, one of the hues and of black, white and gray.
        form: `circle`, `square`, `bar` or `triangle`.
        share: of the picture.
    """

    colour: str
    form: str
    share: float


def regions_of(picture: Any) -> list[Region]:
    """Returns the regions of a PIL image that stand out from its ground, the largest first.

    The ground is the median colour of the border. Pixels of a region touch, at corners too, and have one colour name.
    """
    small = picture.convert('RGB')
    small.thumbnail((SIDE, SIDE))
    pixels = np.asarray(small, np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    apart = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1) >= CONTRAST
    names = _hues(pixels)
    found = []
    for hue in np.unique(names[apart]):
        labels = _labelled(apart & (names == hue))
        for label in np.unique(labels[labels > 0]):
            mask = labels == label
            share = float(mask.mean())
            if share >= SMALLEST:
                found.append(Region(colour_name(pixels[mask].mean(0)), form_of(mask), share))
    return sorted(found, key=lambda region: -region.share)


def colour_name(rgb: np.ndarray) -> str:
    """Returns the name of a colour `(3,)` of 255: the nearest hue, or black, white or gray where it has none."""
    high, low = float(np.max(rgb)), float(np.min(rgb))
    if high < 50:
        return 'black'
    if (high - low) / high < GREY:
        return 'white' if high > 200 else 'gray'
    hue = _hue(np.asarray(rgb, np.float64))
    return min(HUES, key=lambda name: abs((hue - HUES[name] + 180) % 360 - 180))


def form_of(mask: np.ndarray) -> str:
    """Returns the form that a mask `(height, width)` has by how much of its box it fills, and how long that is."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    fills = mask.sum() / (height * width)
    if fills < 0.65:
        return 'triangle'
    if max(height, width) / min(height, width) >= BAR:
        return 'bar'
    return 'square' if fills > 0.89 else 'circle'


def is_same_colour(name: str, other: str) -> bool:
    """Whether two names, as rows and `colour_name` have them, mean one colour."""
    return _known(name) == _known(other)


def _known(name: str) -> str:
    name = name.strip().casefold()
    if name in HUES or name in ('black', 'white', 'gray'):
        return name
    try:
        return colour_name(np.array(ImageColor.getrgb(name)[:3], np.float64))
    except ValueError:
        return name


def _hue(rgb: np.ndarray) -> float:
    red, green, blue = rgb
    return float(np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360)


def _hues(pixels: np.ndarray) -> np.ndarray:
    """The colour name of each pixel as a number: 0 without a hue, else one more than that of the nearest hue."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    hues = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    centres = np.array([*HUES.values()], np.float64)
    nearest = np.abs((hues[..., None] - centres + 180) % 360 - 180).argmin(-1) + 1
    high, low = pixels.max(-1), pixels.min(-1)
    return np.where((high - low) / np.maximum(high, 1) < GREY, 0, nearest)


def _labelled(mask: np.ndarray) -> np.ndarray:
    """The connected regions of a mask, each with a number of its own from 1; 0 elsewhere."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        wide = np.pad(labels, 1)
        height, width = mask.shape
        around = [wide[down : down + height, across : across + width] for down in range(3) for across in range(3)]
        grown = np.where(mask, np.max(around, axis=0), 0)
        # What a label stands at has come to stand for a larger one: jumping there joins long regions in few rounds.
        grown = np.where(mask, np.concatenate([[0], grown.reshape(-1)])[grown], 0)
        if (grown == labels).all():
            return labels
        labels = grown
