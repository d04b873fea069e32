"""TensorBoard: event files in the folder of the run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_anything.reporting.trackers.base import Answers, named_pictures, named_sounds


class TensorBoardTracker:
    """Writes event files to `<output_dir>/tensorboard`."""

    def __init__(
        self, output_dir: Path, project: str, run_name: str, settings: dict[str, Any], resume_step: int | None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Also by the first run: TensorBoard takes the first mark of a start that it sees for no restart.
        purge = 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(log_dir=str(output_dir / 'tensorboard'), purge_step=purge)
        self._writer.add_text('run', f'{project} / {run_name}')
        self._writer.add_text('settings', f'```json\n{json.dumps(settings, indent=2, default=str)}\n```')

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, answers: Sequence[Answers], title: str) -> None:
        """Adds a text with a table, and the media of prompts and responses as images and audio."""
        import soundfile

        columns = ('prompt', 'response', *answers[0].rewards)
        rows = [columns, ['---'] * len(columns), *(map(_cell, row) for one in answers for row in one.rows())]
        self._writer.add_text(title, '\n'.join(f'| {" | ".join(row)} |' for row in rows), step)
        for name, picture in named_pictures(answers):
            self._writer.add_image(f'{title}/{name}', np.asarray(picture), step, dataformats='HWC')
        for name, sound in named_sounds(answers):
            samples, rate = soundfile.read(sound, dtype='float32')
            self._writer.add_audio(f'{title}/{name}', samples[None], step, sample_rate=rate)

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.close()


def _cell(value: str | float) -> str:
    """A value in a table of Markdown, of which nothing is taken for Markdown or HTML."""
    if isinstance(value, float):
        return f'{value:.4g}'
    escaped = re.sub(r'[^\w\s]|_', lambda found: f'&#{ord(found[0])};', value)
    return '<br>'.join(escaped.splitlines())
