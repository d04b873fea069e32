"""A page that shows side by side what several models made of the same prompts, and which of it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from align_anything.core.types import MediaKind
from align_anything.reporting.html import render


class Made(NamedTuple):
    """What a model made of a prompt, and whether it is as it should be."""

    medium: Any
    right: bool


def comparison_page(
    title: str,
    note: str,
    kind: MediaKind,
    models: Sequence[str],
    made: Mapping[str, Sequence[Sequence[Made]]],
) -> str:
    """Returns the page: a line for each prompt, with a cell for each model. It needs no other file and runs nothing.

    Args:
        title: of the page.
        note: what the reader should know, below the title.
        kind: of the media.
        models: what is said of each model above its column, such as its name and how much of it is right.
        made: by prompt, for each model what it made of it.
    """
    rows = [
        (prompt, [[({'type': kind, kind: medium}, right) for medium, right in cell] for cell in cells])
        for prompt, cells in made.items()
    ]
    return render('comparison.html.jinja', title=title, note=note, models=models, rows=rows)
