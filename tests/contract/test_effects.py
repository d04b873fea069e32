"""A setting that can have no effect is refused: every setting of every algorithm, and what an algorithm computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.algorithms.online import Experience
from align_anything.configs.actions import SPOKEN
from align_anything.configs.annotations import shape_of
from align_anything.configs.effects import effects_of
from align_anything.configs.resolve import Resolved
from align_anything.configs.saving import dump_resolved
from align_anything.configs.schema import RunCfgs, build_run_schema, groups_of
from align_anything.core.errors import SettingsError
from align_anything.core.types import Batch, Scored
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import in_tiers

KNOWN = known_algorithms()
NEEDED = {
    'model_name_or_path': 'm',
    'train_datasets': 'd',
    'train_template': 't',
    'output_dir': 'o',
}
REFUSAL = ('it means nothing', 'does not read it', "'constant' has no warm-up")
Values = dict[str, Any]


def resolved(name: str, given: Mapping[str, Any], pair: str = 'any_to_text', *more: str) -> Resolved:
    values = {**NEEDED, **given}.items()
    argv = [part for key, value in values for part in (f'--{key}', json.dumps(value).strip('"'))]
    return settings_of(PAIRS[pair], KNOWN[name], [*argv, *more], {})


def problems(name: str, given: Mapping[str, Any], pair: str = 'any_to_text', *more: str) -> list[str]:
    try:
        resolved(name, given, pair, *more)
    except SettingsError as error:
        return error.problems
    return []


def refusals(name: str, given: Mapping[str, Any], pair: str = 'any_to_text', *more: str) -> list[str]:
    return [text for text in problems(name, given, pair, *more) if any(words in text for words in REFUSAL)]


def other_value(annotation: Any, value: Any) -> Any:
    """A value of the type that asks for something, another than `value` where there is one."""
    shape = shape_of(annotation)
    if bool in shape.numbers:
        return True
    if float in shape.numbers:
        return (value or 0.25) * 0.75
    if int in shape.numbers:
        return (value or 0) // 2 + 1
    if shape.takes_mapping:
        return {'a': 1}
    if shape.item is not None:
        return ['something']
    return next((choice for choice in shape.choices if choice not in (value, 'no', 'auto')), 'something')


# Settings whose conditions hold from the start, by what makes them fail.
UNDOING: Mapping[str, Values] = {
    'lr_warmup_ratio': {'lr_scheduler_type': 'constant'},
    'gradient_checkpointing_every_n_layers': {'gradient_checkpointing': False},
    'activation_offloading': {'gradient_checkpointing': False},
    'critic_lr_warmup_ratio': {'critic_lr_scheduler_type': 'constant'},
    **{
        key: {'advantage_estimator': 'rloo'}
        for key in (
            *('critic_lr', 'critic_lr_scheduler_type', 'critic_weight_decay', 'critic_gradient_checkpointing'),
            'critic_warmup_steps',
            *('gamma', 'gae_lambda', 'bootstrap_truncated', 'clip_range_value', 'clip_range_score'),
            *('reward_critic_model_name_or_path', 'cost_critic_model_name_or_path'),
        )
    },
    'overwrite_output_dir': {'resume': 'auto'},
    'checkpoint_staging_dir': {'save_total_limit': 0},
    'fps': {'num_frames': 4},
    'min_frames': {'num_frames': 4},
    'max_frames': {'num_frames': 4},
    'clip_range_ratio': {'loss_type': 'cispo'},
    **{key: {'loss_type': 'flow_dppo'} for key in ('clip_range_high', 'clip_range_dual')},
    'rollout_correction_level': {'rollout_correction_cap': None},
    'generation_batch_size': {'use_vllm': True},
    'ptx_datasets': {'ptx_coeff': 0, 'ptx_template': 't'},
    'label_smoothing': {'loss_type': 'hinge'},
    'vllm_cfgs': {'use_vllm': False},
    **{f'remote_rm_{key}': {'remote_rm_url': None} for key in ('timeout', 'retry_times', 'batch_size', 'send_media')},
    'remote_rm_weight': {'remote_rm_url': None},
    'reference_dtype': {'use_lora': True},
    'reference_ds_cfgs': {'use_lora': True},
    'kl_estimator': {'beta': 0, 'kl_coeff': 0},
    'reference_model_name_or_path': {'beta': 0, 'kl_coeff': 0},
}
CHOSEN = {'reference_ds_cfgs': 'ds_z2_config.json', 'long_audio': 'cut', 'reward_kwargs': {'format': {'a': 1}}}
CHOSEN |= {'emitted_loss_weights': {'image': 0.5}, 'emit_size': {'image': [4, 4]}}
CHOSEN |= {'emit_temperature': {'image': 0.5}, 'emit_top_k': {'image': 3}, 'media_codes': {'image': {'codec': 'c'}}}
CHOSEN |= {'gradient_checkpointing_every_n_layers': 2}
CHOSEN |= {'emitted_advantage_weights': {'text': 0.5}}
CHOSEN |= {'sde_window_range': [0, 1], 'eval_task_kwargs': {'wer': {'plain': False}}}
CHOSEN |= {'reward_weights': [0.5], 'adam_betas': [0.8, 0.9], 'train_weights': [1.0]}
COMMON = {f'{group}.{key}' for group, model in groups_of(RunCfgs).items() for key in model.model_fields}
WALKS = [(name, common) for name in KNOWN for common in (False, True)]


def key_of_checkpoint(path: str) -> bool:
    """Whether a checkpoint that generates refuses a setting itself, where it turns out not to act."""
    return path in {f'action_cfgs.{key}' for key in SPOKEN}


@pytest.mark.parametrize(('name', 'common'), in_tiers(WALKS, [(name, name == 'sft') for name in KNOWN]))
def test_a_setting_that_has_conditions_is_refused_where_they_fail(name: str, common: bool, tmp_path: Path) -> None:
    groups = groups_of(build_run_schema(KNOWN[name]))
    known = {key for model in groups.values() for key in model.model_fields}
    base, passed = resolved(name, {}).cfgs, []
    for path, effects in effects_of(groups).items():
        if all(path in effect.spares for effect in effects) or (path in COMMON) is not common:
            continue
        if key_of_checkpoint(path) and not KNOWN[name].trains:
            continue
        group, key = path.split('.')
        value = other_value(groups[group].model_fields[key].annotation, getattr(getattr(base, group), key))
        value = str(tmp_path) if key.endswith('_folder') else CHOSEN.get(key, value)
        undone = UNDOING.get(key, UNDOING.get(group, {}))
        undoing = {other: what for other, what in undone.items() if other in known}
        if undone and not undoing:
            continue
        # Some are refused for a reason of their own first; a wrong type is none.
        found = [text for text in problems(name, {**undoing, key: value}, 'text_to_text') if ': expected ' not in text]
        if not any(problem.startswith((f'{path} (command line', f'{path} = ')) for problem in found):
            passed.append((path, value))
    assert passed == []


def perturbed(kind: type[Algorithm], algorithm: Algorithm) -> dict[str, list[Any]]:
    """Other values for each field of an algorithm that a run could give alone."""
    found: dict[str, list[Any]] = {}
    for key, field in kind.model_fields.items():
        value = getattr(algorithm, key)
        literals = [part for part in (field.annotation, *get_args(field.annotation)) if get_origin(part) is Literal]
        candidates = [choice for part in literals for choice in get_args(part)] or [
            other_value(field.annotation, value)
        ]
        if isinstance(value, float):
            candidates.append(value * 0.01)
        for candidate in candidates:
            try:
                changed = kind(**{**algorithm.model_dump(), key: candidate})
            except ValueError:
                continue
            if getattr(changed, key) != value:
                found.setdefault(key, []).append(candidate)
    return found


def outcome(algorithm: Algorithm) -> str:
    """Everything that an algorithm says of a made-up batch and rollout, as text."""
    torch.manual_seed(0)
    segments = torch.arange(8).repeat_interleave(3)
    values = torch.randn(24) - 2
    per_unit = {name: values + 0.7 * torch.randn(24) for name in ('old', 'reference', 'rollout')}
    per_unit['reference'] = values - 0.35 + 0.01 * torch.randn(24)
    per_unit['advantage'] = torch.randn(24)
    scores = values if algorithm.scores == 'tokens' else torch.randn(8)
    metas = [{'desirable': [bool(number % 2)], 'is_better_safe': True, 'is_worse_safe': False} for number in range(8)]
    metas = metas[:4] if algorithm.task == 'preference' else metas
    batch = Batch(
        inputs={}, segments=segments, num_responses=8, weights=torch.ones(24), per_unit=per_unit, metas=metas,
        examples_of_responses=torch.arange(8), sources=[],
    )  # fmt: skip
    scored = Scored(scores, torch.rand(24))
    if algorithm.contrasts is not None:
        per_unit['optimality'] = torch.rand(24)
        scored = scored._replace(contrast=torch.rand(24, 2), divergence=torch.rand(24), drift=torch.rand(24))
    said: dict[str, Any] = {'refers': algorithm.refers, 'coefficients': algorithm.coefficients()}
    terms, counts = algorithm.terms(batch, scored, {'kl': 0.1}), algorithm.counts(batch)
    # Of terms without a coefficient nothing is learned.
    said['terms'] = {
        name: (float(terms[name]), float(counts[name])) for name, weight in algorithm.coefficients().items() if weight
    }
    if algorithm.generates:
        state: dict[str, Any] = {}
        roles = ('reward_critic', 'cost_critic')
        for number in range(3):
            experience = Experience(
                scores=torch.randn(8) * (number + 1) * 40, groups=torch.arange(8) // 2, segments=segments,
                finished=torch.arange(8) > 3, logprobs=values, reference=per_unit['reference'],
                values={role: torch.randn(24) for role in roles}, bootstrap={role: torch.randn(8) for role in roles},
                costs=torch.randn(8), all_costs=[-0.45] * 60,
            )  # fmt: skip
            found = algorithm.advantages(experience, lambda tensor: tensor, state)
            said[f'advantages {number}'] = {name: value.tolist() for name, value in found.items()}
        said['state'] = {key: value for key, value in state.items() if isinstance(value, float)}
        train = build_run_schema(type(algorithm))().train_cfgs
        said['critics'] = [critic.model_dump() for critic in algorithm.critics.values()]
        said['of critics'] = algorithm.train_cfgs_of_critics(train).model_dump()
        said['old'] = [algorithm.old_decay(rollouts) for rollouts in (1, 900)]
        said['rest'] = [algorithm.further_batches, algorithm.bootstraps, algorithm.trained_responses, algorithm.warmup]
    return json.dumps(said, default=str, sort_keys=True)


# What the loops and the wiring read, and not the algorithm itself; `conditioned` has their conditions.
READ_ELSEWHERE = {
    *('per_device_prompt_batch_size', 'num_generations', 'update_iters', 'normalize_reward', 'missing_eos_penalty'),
    *('overlong_buffer', 'reference_model_name_or_path', 'reference_ds_cfgs', 'reference_dtype', 'reference_cache_dir'),
    'critic_gradient_checkpointing',
}
VARIANTS: Mapping[str, list[Values]] = {
    'grpo': [{}, {'beta': 0.0}, {'loss_type': 'cispo'}, {'rollout_correction_cap': None}],
    'ppo': [{}, {'kl_target': 1.0}, {'kl_coeff': 0.0}, {'kl_loss_coeff': 0.1, 'kl_coeff': 0.0}],
    'rloo': [{}, {'kl_target': 1.0}, {'rollout_correction_cap': None, 'kl_loss_coeff': 0.1}],
    'dpo': [{}, {'loss_type': ['hinge']}, {'loss_type': ['discopop']}],
}  # fmt: skip
# Refused although a number changes: it would set what another setting is for.
REFUSED_ALL_THE_SAME = {('grpo', 'clip_range_ratio')}
PTX = {'ptx_datasets': 'd', 'ptx_template': 't'}


@pytest.mark.parametrize(
    ('name', 'variant'),
    [
        pytest.param(name, variant, id=f'{name}-{number}')
        for name, kind in KNOWN.items()
        if kind.trains
        for number, variant in enumerate(VARIANTS.get(name, [{}]))
    ],
)
def test_what_changes_nothing_that_an_algorithm_computes_is_refused(name: str, variant: Values) -> None:
    kind = KNOWN[name]
    ptx = PTX if 'ptx_coeff' in kind.model_fields else {}
    algorithm = kind(**variant)
    before, others = outcome(algorithm), perturbed(kind, algorithm)
    for key in others.keys() - READ_ELSEWHERE:
        changes = any(outcome(kind(**{**algorithm.model_dump(), key: value})) != before for value in others[key])
        refused = any(f'.{key} (' in text for text in refusals(name, {**ptx, **variant, key: others[key][0]}))
        assert changes or refused, f'{key} = {others[key]} changes nothing and is accepted'
        assert not (changes and refused) or (name, key) in REFUSED_ALL_THE_SAME, f'{key} = {others[key]} is refused'
    # What no other value can be given alone of is little.
    assert len(others) >= 0.7 * len(kind.model_fields)


@pytest.mark.parametrize('name', KNOWN)
def test_saved_settings_are_settings(name: str, tmp_path: Path) -> None:
    """Every key of them is given, and none of them is refused for it."""
    given = resolved(name, {})
    (tmp_path / 'settings.yaml').write_text(dump_resolved(given.cfgs))
    again = settings_of(PAIRS['any_to_text'], KNOWN[name], ['--config', f'{tmp_path}/settings.yaml'], {})
    assert again.cfgs == given.cfgs and again.notes == ()


FILES = {
    'forgotten': ('lora_cfgs:\n  r: 8\n', 'lora_cfgs.r'),
    'of others': ('train_cfgs:\n  kl_horizon: 5\nlora_cfgs:\n  use_lora: False\n', 'train_cfgs.kl_horizon'),
}


@pytest.mark.parametrize('case', FILES)
def test_a_file_that_forgets_the_switch_is_refused(case: str, tmp_path: Path) -> None:
    text, path = FILES[case]
    (tmp_path / 'a.yaml').write_text(text)
    [problem] = refusals('ppo', {}, 'text_to_text', '--config', f'{tmp_path}/a.yaml')
    assert problem.startswith(f'{path} ({tmp_path}/a.yaml line 2): ')


def test_a_file_that_switches_off_is_told_once_and_obeyed(tmp_path: Path) -> None:
    (tmp_path / 'a.yaml').write_text('lora_cfgs:\n  use_lora: False\n  r: 8\n  lora_alpha: 32\nnum_frames: 4\n')
    found = resolved('sft', {}, 'text_to_text', '--config', f'{tmp_path}/a.yaml')
    lora = found.cfgs.lora_cfgs
    assert (lora.r, lora.lora_alpha, found.cfgs.data_cfgs.num_frames) == (16, 16, None)
    assert [note.split(' ')[0] for note in found.notes] == [
        'data_cfgs.num_frames', 'lora_cfgs.r', 'lora_cfgs.lora_alpha',
    ]  # fmt: skip
    assert found.origins['lora_cfgs.r'] == 'default'
    # What the command line switches on again holds.
    found = resolved('sft', {'use_lora': True}, 'text_to_text', '--config', f'{tmp_path}/a.yaml')
    assert found.cfgs.lora_cfgs.r == 8
    # What it gives itself is refused all the same.
    assert refusals('sft', {'lora_alpha': 8}, 'text_to_text', '--config', f'{tmp_path}/a.yaml')


@pytest.mark.parametrize(
    ('name', 'given', 'rates'),
    [
        ('sft', {}, {'learning_rate': 2e-4}),
        ('dpo', {}, {'learning_rate': 1e-5}),
        ('ppo', {}, {'learning_rate': 1e-5, 'critic_lr': 5e-5}),
        ('sft', {'learning_rate': 3e-5}, {'learning_rate': 3e-5}),
        ('ppo', {'actor_lr': 3e-5}, {'learning_rate': 3e-5, 'critic_lr': 5e-5}),
    ],
)
def test_adapters_train_at_ten_times_the_rate_of_full_tuning(name: str, given: Values, rates: Values) -> None:
    full = resolved(name, given)
    found = resolved(name, {**given, 'use_lora': True})
    assert {key: getattr(found.cfgs.train_cfgs, key) for key in rates} == rates
    told = [note.split(' ')[0] for note in found.notes if 'ten times' in note]
    assert told == [key for key in rates if getattr(full.cfgs.train_cfgs, key) != rates[key]]
    assert full.notes == ()
    if name == 'ppo':
        assert found.algorithm.critic_lr == rates['critic_lr']


def test_zero_is_not_false() -> None:
    """Or a dropout of adapters that there are not would pass."""
    assert refusals('sft', {'lora_dropout': 0.0})
    assert not refusals('sft', {'use_dora': False})
    # Off asks for something where on is the default.
    assert refusals('sft', {'load_in_4bit': False}) and refusals('ppo', {'vllm_enforce_eager': False})
