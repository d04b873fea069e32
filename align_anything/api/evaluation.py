"""An evaluation from Python: the settings, the errors and the results of the command."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_anything.algorithms.evaluate import Evaluate
from align_anything.api.lending import lend_rows
from align_anything.api.process import guest
from align_anything.configs.layers import Call
from align_anything.trainers import launch
from align_anything.trainers.pairs import find_pair

if TYPE_CHECKING:
    from align_anything.api.lending import Dataset


def evaluate(
    pair: str,
    model: str | Path,
    dataset: Dataset | Sequence[Dataset] | None = None,
    tasks: str | Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Measures what a checkpoint answers, as the command `align-anything evaluate PAIR` does.

    Args:
        pair: the modality pair, such as `text_image_to_text`.
        model: a checkpoint: `model_name_or_path`.
        dataset: prompts: a path or a name of the hub, a list of dicts, a `Dataset` of the library `datasets`, or a list
            of these.
        tasks: what the answers are measured by, such as `exact_match`.
        settings: every setting of the command, by the same names, `output_dir` among them.

    Returns:
        What `results.json` holds; nothing on other ranks than the main one.

    Raises:
        SettingsError: with all that is wrong with the settings.
        AlignAnythingError: as the command, for data, models and tasks that cannot be used.
    """
    its_pair = find_pair(pair)
    with ExitStack() as stack:
        called = {'model': model, 'dataset': lend_rows('evaluate(dataset', dataset, stack)}
        called |= {'tasks': [tasks] if isinstance(tasks, str) else list(tasks)}
        called = {name: value for name, value in called.items() if value is not None}
        call = Call('evaluate', {**called, **settings})
        # What the environment sets is meant for trainings.
        resolved = launch.settings_of(its_pair, Evaluate, [], {}, call)
        stack.enter_context(guest())
        from align_anything.evaluation.run import evaluate as evaluate_model

        return evaluate_model(its_pair, resolved) or {}
