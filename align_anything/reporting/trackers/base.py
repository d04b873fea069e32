"""What every tracker receives, and how a resumed run finds the record that it began."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from align_anything.core.errors import SettingsError
from align_anything.core.files import atomic_write_json
from align_anything.reporting.html import stacked

if TYPE_CHECKING:
    from PIL import Image

RUN_ID_FILE = 'tracker.json'
COMPLETIONS = 'completions'


@dataclass(frozen=True)
class Answers:
    """A prompt and responses to it.

    Attributes:
        prompt: what was asked.
        picture: its media in one small image, where there is something to see.
        responses: the text of each response.
        pictures: the images and frames in each response in one small image, None where there is nothing to see.
        sounds: a WAV file of each response, None where there is nothing to hear.
        rewards: what each of them was worth, by name.
    """

    prompt: str
    picture: Image.Image | None
    responses: list[str]
    pictures: list[Image.Image | None]
    sounds: list[Path | None]
    rewards: dict[str, list[float]]

    def rows(self) -> list[tuple[Any, ...]]:
        """A row for each response: prompt, response, rewards."""
        return [
            (self.prompt, response, *rewards)
            for response, *rewards in zip(self.responses, *self.rewards.values(), strict=True)
        ]


def named_pictures(answers: Sequence[Answers]) -> Iterator[tuple[str, Image.Image]]:
    """Yields what there is to see by name: the media of each prompt, and of its responses, one below the other."""
    for number, one in enumerate(answers, 1):
        shown = {f'prompt {number}': one.picture, f'responses to prompt {number}': stacked(one.pictures)}
        yield from ((name, picture) for name, picture in shown.items() if picture is not None)


def named_sounds(answers: Sequence[Answers]) -> Iterator[tuple[str, Path]]:
    """Yields what there is to hear by name, as WAV files."""
    for number, one in enumerate(answers, 1):
        for response, sound in enumerate(one.sounds, 1):
            if sound is not None:
                yield f'prompt {number}, response {response}', sound


class Tracker(Protocol):
    """Receives what the run measures."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of one optimizer step, already named `train/loss`."""

    def show(self, step: int, answers: Sequence[Answers], title: str) -> None:
        """Takes some prompts with their responses, and what to call them; all have rewards of the same names."""

    def close(self) -> None:
        """Sends what is left and ends the run."""


def not_started(log_type: str, error: Exception, advice: str) -> SettingsError:
    """What is raised when a tracker refuses to start."""
    return SettingsError([f'{log_type} did not start: {error}. {advice}, or choose another logger_cfgs.log_type.'])


def stored_id(output_dir: Path, log_type: str, resume_step: int | None) -> str | None:
    """The id under which an earlier start of this run was filed; None for a fresh run, and for another tracker's."""
    path = output_dir / RUN_ID_FILE
    if resume_step is None or not path.exists():
        return None
    stored = json.loads(path.read_text(encoding='utf-8'))
    return stored['id'] if stored['log_type'] == log_type else None


def store_id(output_dir: Path, log_type: str, run_id: str) -> None:
    """Remembers the id for a run that goes on from here."""
    atomic_write_json(output_dir / RUN_ID_FILE, {'log_type': log_type, 'id': run_id})
