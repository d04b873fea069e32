"""What the tabs of the page share."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from align_anything.serve.ui.choices import Found, look_around
from align_anything.serve.ui.pages import Pages
from align_anything.serve.ui.paths import Root

if TYPE_CHECKING:
    from align_anything.serve.ui.chat import Models


@dataclass
class Page:
    """The page of one folder.

    Attributes:
        root: what may be named on it.
        known: checkpoints of the hub that are offered beside those in the folder.
        pages: the reports that it shows.
        folder: where it keeps what it shows and nobody asked to keep.
    """

    root: Root
    known: Sequence[str] = ()
    pages: Pages = field(default_factory=Pages)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix='align-anything-ui-')))
    _models: Models | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def found(self) -> Found:
        """Returns what lies in the folder now."""
        return look_around(self.root.folder)

    def checkpoints(self) -> list[str]:
        """Returns the checkpoints to choose from, those in the folder first."""
        return [*self.found().checkpoints, *self.known]

    def load_library(self) -> None:
        """Imports what knows the settings, which takes seconds the first time. Threads wait for each other."""
        with self._lock:
            import align_anything.serve.ui.form  # noqa: F401
            import align_anything.serve.ui.runs  # noqa: F401
            from align_anything.algorithms.base import known_algorithms

            known_algorithms()

    def models(self) -> Models:
        """Returns the checkpoints that are open to be talked with; the first call imports what opens them."""
        self.load_library()
        with self._lock:
            if self._models is None:
                from align_anything.serve.ui.chat import Models

                self._models = Models(self.root)
            return self._models
