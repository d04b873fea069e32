"""Evaluation of a checkpoint: its answers, and numbers for them. It is `generate` with what comes after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from align_anything.algorithms.generate import ACTING, ANSWERING, JUDGING, OBEYED, Generate, obeyed
from align_anything.configs.effects import Effect, Effects, never

HARNESS = 'lm_eval:'
"""How the names of tasks begin that lm-evaluation-harness has."""
OWN = ('tasks', 'task_kwargs', 'compare_with', 'bootstrap_samples')
"""What is done with the answers."""


class Evaluate(Generate):
    """Answers the prompts of the data, and measures the answers by `tasks`. No leaf has it: the command runs it."""

    name: ClassVar[str] = 'evaluate'
    reads_afterwards: ClassVar[tuple[str, ...]] = OWN
    read_as: ClassVar[Mapping[str, str]] = {
        f'eval_{key}': f'train_{key}'
        for key in ('datasets', 'template', 'template_kwargs', 'name', 'split', 'size', 'data_files', 'optional_args')
    }
    takes_effect: ClassVar[Effects] = {
        '*.*': never(
            'evaluate trains nothing and does not read it; remove it.',
            spares=obeyed(OBEYED, JUDGING, ANSWERING, ACTING, {'train_cfgs': OWN}),
        ),
        'train_cfgs.task_kwargs': Effect(
            lambda facts: bool(facts.algorithm.tasks),
            'it means nothing without tasks; give these, or leave it out.',
            by=('train_cfgs.tasks',),
        ),
    }

    tasks: list[str] = Field(
        [],
        description='What answers are measured by: metrics (exact_match, choice, vqa, wer, cer, fid, kid, shapes, '
        'objects, win_rate, judge), reward functions (clip_score, clap_score …), path/to/file.py:name, and tasks of '
        'lm-evaluation-harness as lm_eval:<name>.',
    )
    task_kwargs: dict[str, dict[str, Any]] = Field({}, description='Options of tasks, by the name of the task.')
    compare_with: str | None = Field(
        None,
        description='Output folder of an earlier evaluate or generate over the same prompts, whose checkpoint this one '
        'is compared with.',
    )
    bootstrap_samples: int = Field(
        1000, ge=100, description='Resamplings of the prompts that 95 % intervals are made of.'
    )

    @property
    def harness_tasks(self) -> list[str]:
        """The tasks of lm-evaluation-harness, by its names."""
        return [name.removeprefix(HARNESS) for name in self.tasks if name.startswith(HARNESS)]

    @property
    def reads_rows(self) -> bool:
        """Whether it answers prompts of data: not where all tasks bring their own."""
        return len(self.harness_tasks) < len(self.tasks) or not self.tasks
