"""Pictures in terminals that can show them: kitty's protocol, and sixels."""

from __future__ import annotations

import base64
import os
import re
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy

from align_anything.datasets.media.writing import png

if TYPE_CHECKING:
    from PIL import Image

CHUNK = 4096
COLOURS = 256
BAND = 6
"""Rows of pixels in a line of sixels."""
WIDEST, HIGHEST = 640, 480
REPLY_SECONDS = 0.5
KITTY_QUERY = '\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\'
ATTRIBUTES_QUERY = '\x1b[c'
ATTRIBUTES = re.compile(rb'\x1b\[\?([\d;]*)c')
SIXEL = b'4'
"""Among the attributes of a terminal: it shows sixels."""


def graphics_of(descriptor_in: int, descriptor_out: int) -> Callable[[Any], str] | None:
    """Asks the terminal what it can show, and returns what makes its sequences of an image; None where it cannot.

    Both are descriptors of the terminal. It answers the last question in any case, or it is none that is known.
    """
    import termios
    import tty

    before = termios.tcgetattr(descriptor_in)
    try:
        tty.setcbreak(descriptor_in)
        os.write(descriptor_out, (KITTY_QUERY + ATTRIBUTES_QUERY).encode())
        reply, end = b'', time.monotonic() + REPLY_SECONDS
        while not ATTRIBUTES.search(reply) and (left := end - time.monotonic()) > 0:
            if not select.select([descriptor_in], [], [], left)[0]:
                break
            reply += os.read(descriptor_in, 1024)
    finally:
        termios.tcsetattr(descriptor_in, termios.TCSADRAIN, before)
    return named_in(reply)


def named_in(reply: bytes) -> Callable[[Any], str] | None:
    """Returns what makes the sequences of an image for a terminal that has answered so."""
    if b'\x1b_Gi=31;OK' in reply:
        return kitty
    found = ATTRIBUTES.search(reply)
    return sixels if found is not None and SIXEL in found[1].split(b';') else None


def fitted(image: Image.Image) -> Image.Image:
    """Returns an image not larger than is shown; small ones are shown with larger pixels."""
    from PIL import Image

    scale = min(WIDEST / image.width, HIGHEST / image.height)
    if scale >= 2:
        factor = min(int(scale), max(1, HIGHEST // 4 // max(image.size)))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if scale >= 1:
        return image
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def kitty(image: Image.Image) -> str:
    """Returns an image in the graphics protocol of kitty: a PNG file in base64, in chunks."""
    data = base64.b64encode(png(fitted(image))).decode()
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    written = []
    for number, chunk in enumerate(chunks):
        keys = 'a=T,f=100,q=2,' if number == 0 else ''
        written.append(f'\x1b_G{keys}m={int(number + 1 < len(chunks))};{chunk}\x1b\\')
    return ''.join(written)


def sixels(image: Image.Image) -> str:
    """Returns an image as sixels, of as many colours as terminals have registers for."""
    from PIL import Image

    reduced = fitted(image).convert('RGB').quantize(COLOURS, dither=Image.Dither.NONE)
    pixels = numpy.asarray(reduced)
    height, width = pixels.shape
    palette = numpy.array(reduced.getpalette(), dtype=numpy.int64).reshape(-1, 3)
    shares = (palette * 100 / 255).round().astype(int).tolist()
    registers = [f'#{colour};2;' + ';'.join(map(str, shares[colour])) for colour in numpy.unique(pixels).tolist()]
    lines = []
    for top in range(0, height, BAND):
        band = pixels[top : top + BAND]
        weights = 1 << numpy.arange(len(band))
        rows = []
        for colour in numpy.unique(band):
            codes = ((band == colour) * weights[:, None]).sum(0) + 63
            rows.append(f'#{colour}{_repeated(codes)}')
        lines.append('$'.join(rows))
    return f'\x1bP0;1q"1;1;{width};{height}{"".join(registers)}{"-".join(lines)}\x1b\\'


def _repeated(codes: numpy.ndarray) -> str:
    """Characters with these codes, `(width,)`, each run of more than three of one as its length."""
    starts = numpy.flatnonzero(numpy.diff(codes, prepend=-1))
    lengths = numpy.diff(numpy.append(starts, len(codes)))
    runs = zip(codes[starts].tolist(), lengths.tolist(), strict=True)
    return ''.join(f'!{length}{chr(code)}' if length > 3 else chr(code) * length for code, length in runs)
