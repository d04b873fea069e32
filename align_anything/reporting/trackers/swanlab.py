"""SwanLab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.reporting.trackers.base import (
    Answers,
    named_pictures,
    named_sounds,
    not_started,
    store_id,
    stored_id,
)


class SwanLabTracker:
    """Logs to SwanLab, with its files in `<output_dir>/swanlab`; a resumed run goes on under the same id."""

    def __init__(
        self, output_dir: Path, project: str, run_name: str, settings: dict[str, Any], resume_step: int | None
    ) -> None:
        import swanlab
        from swanlab.exceptions import AuthenticationError

        known_id = stored_id(output_dir, 'swanlab', resume_step)
        try:
            self._run = swanlab.init(
                project=project,
                name=run_name,
                log_dir=str(output_dir / 'swanlab'),
                config=settings,
                id=known_id,
                resume='allow' if known_id else None,
                # The collected metadata holds the command line, where a token may stand.
                settings=swanlab.Settings(probe={'runtime': False, 'requirements': False, 'git': False}),
            )
        except (AuthenticationError, OSError, RuntimeError, ValueError) as error:
            raise not_started('swanlab', error, 'Log in with `swanlab login`, set SWANLAB_MODE=offline') from error
        store_id(output_dir, 'swanlab', self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values against the optimizer step."""
        self._run.log(dict(values), step=step)

    def show(self, step: int, answers: Sequence[Answers], title: str) -> None:
        """Logs each response as a text with its prompt and rewards, and media as images and audio."""
        import swanlab

        texts = []
        for one in answers:
            for prompt, response, *rewards in one.rows():
                worth = ', '.join(f'{name} {value:.4g}' for name, value in zip(one.rewards, rewards, strict=True))
                texts.append(swanlab.Text(f'{prompt}\n\n{response}', caption=worth))
        media = {
            'media': [swanlab.Image(picture, caption=name) for name, picture in named_pictures(answers)],
            'sounds': [swanlab.Audio(str(sound), caption=name) for name, sound in named_sounds(answers)],
        }
        shown = {f'{title}/{name}': items for name, items in media.items() if items}
        self._run.log({title: texts, **shown}, step=step)

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()
