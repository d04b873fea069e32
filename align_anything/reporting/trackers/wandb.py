"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.reporting.trackers.base import COMPLETIONS, Answers, not_started, store_id, stored_id


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

    def show(self, step: int, answers: Sequence[Answers]) -> None:
        """Logs a table with the media of each prompt in a column."""
        import wandb

        pictures = [None if one.picture is None else wandb.Image(one.picture) for one in answers]
        rows = [
            [prompt, picture, *rest]
            for one, picture in zip(answers, pictures, strict=True)
            for prompt, *rest in one.rows()
        ]
        columns = ['prompt', 'media', 'response', *answers[0].rewards]
        self._run.log({'step': step, COMPLETIONS: wandb.Table(columns=columns, data=rows)})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()
