"""What a caller's own code is told while a run goes, and how it stops the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from align_anything.core.distributed import all_gather_object, is_main
from align_anything.core.errors import SettingsError

STOP = 'stop'


class Callback:
    """Watches a training. Derive from it and write the methods that you need; the first process alone calls them.

    One that returns `'stop'` ends the run once the step under way is saved as a checkpoint, from which `resume='auto'`
    goes on. What a method raises ends the run at once.
    """

    def on_step(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Called every `log_interval` optimizer steps, and after the last one.

        `metrics` are those of metrics.jsonl and timings.jsonl without their `train/`, such as `loss`.
        """

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Called after each evaluation, with its metrics, such as `loss`."""

    def on_save(self, step: int, folder: Path) -> str | None:
        """Called when a checkpoint, the best model or the trained model is in `folder`."""


class Watchers:
    """The callbacks of a run. Every rank makes one and asks it to stop; only those of rank 0 are called."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = list(callbacks) if is_main() else []
        self._asked = False
        # Settled once: later it costs a collective only where somebody may stop the run.
        self._any = any(all_gather_object(bool(self._callbacks)))

    def logged(self, step: int, metrics: Mapping[str, float], prefix: str) -> None:
        """Tells of the metrics of a step, or of an evaluation."""
        for callback in self._callbacks:
            tell = callback.on_evaluation if prefix == 'eval' else callback.on_step
            self._heard(callback, tell(step, metrics))

    def saved(self, step: int, folder: Path) -> None:
        """Tells of what was saved in `folder` after `step`."""
        for callback in self._callbacks:
            self._heard(callback, callback.on_save(step, folder))

    def ask_to_stop(self) -> bool:
        """Returns whether a callback has asked to stop. Every rank calls it."""
        return self._any and any(all_gather_object(self._asked))

    def _heard(self, callback: Callback, answer: str | None) -> None:
        if answer not in (None, STOP):
            raise SettingsError(
                [f"callbacks: {type(callback).__name__} returned {answer!r}; return 'stop' to end the run, or nothing."]
            )
        self._asked = self._asked or answer == STOP
