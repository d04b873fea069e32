"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.reporting.trackers.base import Answers, not_started, store_id, stored_id


class WandbTracker:
    """Logs to Weights & Biases; a resumed run goes on under the same id."""

    def __init__(
        self, output_dir: Path, project: str, run_name: str, settings: dict[str, Any], resume_step: int | None
    ) -> None:
        import wandb

        known_id = stored_id(output_dir, 'wandb', resume_step)
        try:
            self._run = wandb.init(
                project=project,
                name=run_name,
                dir=str(output_dir),
                config=settings,
                id=known_id,
                resume='allow' if known_id else None,
                # The collected metadata holds the command line, where a token may stand.
                settings=wandb.Settings(x_disable_meta=True, disable_code=True, disable_git=True),
            )
        except wandb.Error as error:
            raise not_started('wandb', error, 'Log in with `wandb login`, set WANDB_MODE=offline') from error
        store_id(output_dir, 'wandb', self._run.id)
        # Our own step axis: wandb's counter refuses to go back, as a resumed run does.
        self._run.define_metric('step', hidden=True)
        self._run.define_metric('*', step_metric='step')

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values against the optimizer step."""
        self._run.log({'step': step, **values})

    def show(self, step: int, answers: Sequence[Answers], title: str) -> None:
        """Logs a table with the media of each prompt in a column, and in others those of responses if they have any."""
        import wandb

        def columns_of(name: str, medium: Callable[[Any], Any], of_responses: list[list[Any]]) -> dict[str, list[Any]]:
            found = [None if item is None else medium(item) for own in of_responses for item in own]
            return {name: found} if any(item is not None for item in found) else {}

        prompts = [None if one.picture is None else wandb.Image(one.picture) for one in answers]
        shown = {
            'media': [picture for one, picture in zip(answers, prompts, strict=True) for _ in one.responses],
            **columns_of('generated', wandb.Image, [one.pictures for one in answers]),
            **columns_of('sound', lambda path: wandb.Audio(str(path)), [one.sounds for one in answers]),
        }
        texts = [row for one in answers for row in one.rows()]
        rows = [
            [prompt, media, response, *generated, *rewards]
            for (prompt, response, *rewards), media, *generated in zip(texts, *shown.values(), strict=True)
        ]
        columns = ['prompt', 'media', 'response', *list(shown)[1:], *answers[0].rewards]
        self._run.log({'step': step, title: wandb.Table(columns=columns, data=rows)})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()
