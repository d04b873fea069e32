"""Tasks of lm-evaluation-harness, for text: it brings prompts, few-shot examples and metrics of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from align_anything.algorithms.evaluate import HARNESS, Evaluate
from align_anything.configs.generation import GenerationRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.core.errors import FOREIGN_FAULTS, RewardError, SettingsError
from align_anything.core.registry import nearest
from align_anything.metrics.statistics import LEVEL
from align_anything.models.adapter import find_adapter

LOWER = ('perplexity', 'bits_per_byte', 'brier', 'wer', 'ter')
"""What the names of its metrics hold that are better when they are lower."""
DEVIATIONS = {0.95: 1.959964}
"""Standard errors that an interval of a normal distribution reaches to both sides, by its level."""


class Options(BaseModel):
    """What `task_kwargs` may say of a task of the harness.

    Attributes:
        include_path: folder with task files of your own.
        num_fewshot: examples before each question; None is what the task says.
        limit: only the first so many questions.
        apply_chat_template: asks in the model's chat template.
    """

    model_config = ConfigDict(extra='forbid')

    include_path: str | None = None
    num_fewshot: NonNegativeInt | None = None
    limit: PositiveInt | None = None
    apply_chat_template: bool = False


def run_harness(resolved: Resolved[GenerationRunCfgs, Evaluate]) -> dict[str, dict[str, Any]]:
    """Returns what the harness says of its tasks among `tasks`, by `lm_eval:<task>/<metric>`, as other results are.

    Intervals are of a normal distribution with the standard error that it gives.

    Raises RewardError where the harness knows no such task, or fails.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, own in options_of(resolved.algorithm).items():
        found |= results_of(_asked(resolved.cfgs, name, own))
    return found


def options_of(algorithm: Evaluate) -> dict[str, Options]:
    """Returns the options of the harness's tasks. Raises SettingsError for one that a task does not have."""
    return {
        name: checked_options(name, algorithm.task_kwargs.get(f'{HARNESS}{name}', {}))
        for name in algorithm.harness_tasks
    }


def check_known(algorithm: Evaluate) -> None:
    """Raises SettingsError for tasks that the harness does not know, before anything is generated."""
    from lm_eval.tasks import TaskManager

    problems = []
    for name, own in options_of(algorithm).items():
        known = TaskManager(include_path=own.include_path)
        if not Path(name).is_file() and not known.match_tasks([name]):
            problems.append(
                f"train_cfgs.tasks: lm-evaluation-harness has no task '{name}'.{nearest(name, known.all_tasks)}"
            )
    if problems:
        raise SettingsError(problems)


def checked_options(name: str, given: Mapping[str, Any]) -> Options:
    """Returns the options of a task. Raises SettingsError with all that is wrong with them."""
    try:
        return Options(**given)
    except ValidationError as error:
        known = ', '.join(Options.model_fields)
        raise SettingsError(
            [
                f"train_cfgs.task_kwargs: '{'.'.join(map(str, problem['loc']))}' of {HARNESS}{name}: {problem['msg']}. "
                f'Its options: {known}.'
                for problem in error.errors()
            ]
        ) from error


def results_of(told: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the results of the harness, `{'results': …, 'n-samples': …}`, in the form of `results.json`."""
    found = {}
    for task, metrics in told['results'].items():
        counts = told.get('n-samples', {}).get(task, {})
        for key, value in metrics.items():
            name, _, form = key.partition(',')
            if not form or name.endswith('_stderr') or not isinstance(value, (int, float)):
                continue
            error = metrics.get(f'{name}_stderr,{form}')
            reach = DEVIATIONS[LEVEL] * error if isinstance(error, (int, float)) else None
            label = f'{HARNESS}{task}/{name}' + ('' if form == 'none' else f'/{form}')
            found[label] = {
                'better': 'lower' if any(part in name for part in LOWER) else 'higher',
                'value': float(value),
                'interval': None if reach is None else [value - reach, value + reach],
                **({'responses': counts['effective']} if 'effective' in counts else {}),
            }
    return found


def _asked(cfgs: GenerationRunCfgs, task: str, options: Options) -> Mapping[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    try:
        return lm_eval.simple_evaluate(
            model='vllm' if cfgs.vllm_cfgs.use_vllm else 'hf',
            model_args=model_args(cfgs),
            tasks=[task],
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.apply_chat_template,
            batch_size=cfgs.model_cfgs.generation_batch_size or 'auto',
            task_manager=TaskManager(include_path=options.include_path),
            log_samples=False,
            random_seed=cfgs.train_cfgs.seed,
            numpy_random_seed=cfgs.train_cfgs.seed,
            torch_random_seed=cfgs.train_cfgs.seed,
            fewshot_random_seed=cfgs.train_cfgs.seed,
        )
    except FOREIGN_FAULTS as error:
        raise RewardError(f'{HARNESS}{task}: the harness failed with {type(error).__name__}: {error}') from error


def model_args(cfgs: GenerationRunCfgs) -> dict[str, Any]:
    """Returns what the harness opens the checkpoint with: the model and, of a LoRA folder, the adapter on it."""
    models, train = cfgs.model_cfgs, cfgs.train_cfgs
    adapter = find_adapter(models.model_name_or_path)
    dtype = 'bfloat16' if train.bf16 else 'float16' if train.fp16 else 'float32'
    found = {
        'pretrained': models.model_name_or_path if adapter is None else adapter.require_base(),
        'dtype': dtype,
        'trust_remote_code': models.trust_remote_code,
    }
    if cfgs.vllm_cfgs.use_vllm:
        return {**found, 'max_model_len': models.model_max_length}
    device = {'device': 'cuda' if torch.cuda.is_available() else 'cpu', 'max_length': models.model_max_length}
    return {**found, **device, **({} if adapter is None else {'peft': models.model_name_or_path})}
