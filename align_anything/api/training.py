"""A training from Python: the settings, the errors and the run of the command."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_anything.api.lending import lend_rows
from align_anything.api.process import guest
from align_anything.cli.leaves import find_run
from align_anything.configs.layers import Call
from align_anything.core.errors import SettingsError
from align_anything.core.files import FINAL_NAME
from align_anything.reporting.callbacks import Callback
from align_anything.rewards import base as rewards
from align_anything.trainers import launch

if TYPE_CHECKING:
    import pandas

    from align_anything.api.lending import Dataset
    from align_anything.api.policy import Policy

Rewards = str | rewards.RewardFunction


@dataclass(frozen=True)
class Result:
    """What a training left.

    Attributes:
        folder: the checkpoint with the trained model; where a callback stopped the run, that from which it goes on.
        output_dir: the folder of the run.
    """

    folder: Path
    output_dir: Path

    @property
    def finished(self) -> bool:
        """Whether the run went to its last step."""
        return self.folder.name == FINAL_NAME

    @cached_property
    def policy(self) -> Policy:
        """The trained model, to score and to generate with; it is loaded from `folder` when it is first asked for."""
        from align_anything.api.policy import load_policy

        return load_policy(self.folder)

    @property
    def model(self) -> Any:
        """The trained model of transformers, or the pipeline of diffusers."""
        return self.policy.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; None of a pipeline."""
        return self.policy.tokenizer

    @property
    def processor(self) -> Any:
        """Its processor; None of a text model and of a pipeline."""
        return self.policy.processor

    @property
    def metrics(self) -> pandas.DataFrame:
        """The metrics by optimizer step, a column for each, such as `train/loss` and `eval/loss`."""
        import pandas

        from align_anything.reporting.metrics import METRICS_FILE, read_metrics

        frame = pandas.DataFrame(read_metrics(self.output_dir / METRICS_FILE)).astype(float)
        return frame.groupby('step').last() if len(frame) else frame


def train(
    pair: str,
    algorithm: str,
    model: str | Path | None = None,
    dataset: Dataset | Sequence[Dataset] | None = None,
    *,
    eval_dataset: Dataset | Sequence[Dataset] | None = None,
    reward: Rewards | Sequence[Rewards] | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    config: str | Path | Sequence[str | Path] = (),
    **settings: Any,
) -> Result:
    """Trains, as the command `align-anything train PAIR ALGORITHM` does.

    In a notebook it runs in the process of the notebook, as often as you like, and leaves no model in memory. In a
    script that `deepspeed` or `torchrun` starts, every rank calls it.

    Args:
        pair: the modality pair, such as `text_image_to_text`.
        algorithm: such as `dpo`.
        model: a checkpoint: `model_name_or_path`.
        dataset: rows to train on: a path or a name of the hub, a list of dicts, a `Dataset`, `IterableDataset` or
            `DatasetDict` of the library `datasets`, or a list of these. Media in rows may be paths, bytes, PIL images
            or arrays.
        eval_dataset: rows to evaluate on, likewise.
        reward: functions that reward responses, `(completions, **options) -> list[float | None]`, their names, or a
            list of these. `reward_weights` and `reward_kwargs` know a function by its name in Python.
        callbacks: watch the run, and stop it.
        config: settings files, the later over the earlier.
        settings: every setting of the command, by the same names; they go over files and the environment.

    Returns:
        What the training left.

    Raises:
        SettingsError: with all that is wrong with the settings.
        AlignAnythingError: as the command, for data, models and rewards that cannot be used.
        KeyboardInterrupt: Ctrl-C, or the notebook's stop, ended it; the text says where the checkpoint is.
    """
    its_pair, kind = find_run(pair, algorithm)
    if not kind.trains:
        raise SettingsError([f'{algorithm} trains nothing: load_policy(model).score(conversations) gives scores.'])
    files = [config] if isinstance(config, (str, Path)) else config
    argv = [word for file in files for word in ('--config', str(file))]
    with ExitStack() as stack:
        called = {'model': model, 'reward': _lend_rewards(reward, stack)}
        for argument, source in (('dataset', dataset), ('eval_dataset', eval_dataset)):
            called[argument] = lend_rows(f'train({argument}', source, stack)
        called = {name: value for name, value in called.items() if value is not None}
        resolved = launch.settings_of(its_pair, kind, argv, os.environ, Call('train', {**called, **settings}))
        output_dir = Path(resolved.cfgs.logger_cfgs.output_dir)
        stack.enter_context(guest())
        watching = [callbacks] if isinstance(callbacks, Callback) else callbacks
        try:
            folder = launch.run(its_pair, kind, resolved, watching)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_where_it_stands(output_dir)) from None
    return Result(folder, output_dir)


def _where_it_stands(output_dir: Path) -> str:
    from align_anything.engines.checkpoint import find_checkpoint

    last = find_checkpoint('auto', output_dir)
    if last is None:
        return f'stopped; {output_dir} holds no checkpoint yet'
    return f"stopped; the last checkpoint is {last.path}, from which train(…, resume='auto') goes on"


def _lend_rewards(given: Any, stack: ExitStack) -> list[str] | None:
    """The names of the functions; those that are none are lent under theirs until the stack ends."""
    if given is None:
        return None
    names = []
    for one in given if isinstance(given, (list, tuple)) else [given]:
        if not isinstance(one, str):
            stack.enter_context(rewards.LENT.lend({_name_of(one): one}))
        names.append(one if isinstance(one, str) else _name_of(one))
    return names


def _name_of(function: Callable[..., Any]) -> str:
    if not inspect.isroutine(function):
        raise SettingsError(
            [f'train(reward=…): {function!r} is no function. Give a def, the name of a registered one, or a list.']
        )
    return function.__name__
