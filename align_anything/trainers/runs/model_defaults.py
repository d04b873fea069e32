"""Settings that hang on the kind of model: what trains tokens well does not train denoisers, or means nothing there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from align_anything.configs.resolve import Resolved
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger
from align_anything.models.diffusion.saved_lora import base_of, is_lora_folder, trains_text
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.trainers.loops.splitting import steps_of_rollout
from align_anything.trainers.runs import action_models, flow_models
from align_anything.trainers.runs.model_checks import without_effect
from align_anything.trainers.runs.pipelines import OF_TOKENS
from align_anything.trainers.runs.settings import acts, denoises, spec_of

logger = get_logger(__name__)

FULL_RATE, ADAPTER_RATE, ONLINE_ADAPTER_RATE = 1e-5, 1e-4, 3e-4
OF_DENOISERS: Mapping[str, Any] = {
    'clip_range_ratio': 1e-4,
    'clip_range_advantage': 5.0,
    'scale_rewards': 'batch',
    'loss_aggregation': 'token-mean',
    'beta': 0.004,
    'kl_coeff': 0.0,
    'advantage_estimator': 'rloo',
}
"""Of policy gradients on denoising steps, as in Flow-GRPO: the score of a step is a mean over the elements of latents,
so that ratios are much nearer to 1 than those of tokens."""

WARMUP_ROLLOUTS, WARMUP_SHARE = 4, 10
"""Rollouts that critics of such costs learn from alone, and the share of a run that these are at most, inverted."""
JUDGES = tuple(f'model_cfgs.{role}_model_name_or_path' for role in ('reward', 'cost'))


def with_model_defaults(resolved: Resolved) -> Resolved:
    """Returns the same run with the defaults for its kind of model where the user gave nothing. It logs them.

    What other kinds alone read is left out of it. Raises SettingsError for such settings outside of files.
    """
    resolved = with_event_defaults(resolved)
    if acts(resolved.cfgs):
        return _of_acting(resolved)
    resolved = _with_its_text_encoders(_on_its_pipeline(resolved))
    if not denoises(resolved.cfgs):
        why = f'{resolved.cfgs.model_cfgs.model_name_or_path} writes tokens and denoises nothing'
        return without_effect(resolved, ['diffusion_cfgs.*'], why)
    spec = spec_of(resolved.cfgs)
    resolved = without_effect(resolved, OF_TOKENS, f'{spec.model_type} denoises media and has no tokens')
    if not any(path in resolved.origins and resolved.given(path) for path in JUDGES):
        why = 'code that a pipeline brings is never run'
        resolved = without_effect(resolved, ['model_cfgs.trust_remote_code'], why)
    wanted = {
        key: value
        for key, value in _defaults(resolved, spec).items()
        if key in type(resolved.cfgs.train_cfgs).model_fields and not resolved.given(f'train_cfgs.{key}')
    }
    if not wanted or not resolved.algorithm.trains:
        return resolved
    logger.info('defaults for denoisers: %s', ', '.join(f'{key}: {value}' for key, value in sorted(wanted.items())))
    train = resolved.cfgs.train_cfgs.model_copy(update=wanted)
    own = {key: value for key, value in wanted.items() if key in type(resolved.algorithm).model_fields}
    return replace(
        resolved,
        cfgs=resolved.cfgs.model_copy(update={'train_cfgs': train}),
        algorithm=resolved.algorithm.model_copy(update=own),
    )


def _of_acting(resolved: Resolved) -> Resolved:
    why = f'{resolved.cfgs.model_cfgs.model_name_or_path} acts, and has no tokens'
    resolved = without_effect(resolved, action_models.OF_TOKENS, why)
    spec = spec_of(resolved.cfgs)
    if spec.unit == 'denoised action':
        resolved = flow_models.with_defaults(resolved, spec)
    else:
        resolved = without_effect(resolved, ['diffusion_cfgs.*'], f'{why} and denoises nothing')
    cfgs, changed = resolved.cfgs, {}
    if not resolved.given('train_cfgs.gradient_checkpointing'):
        changed['train_cfgs'] = cfgs.train_cfgs.model_copy(update={'gradient_checkpointing': False})
    if 'model_cfgs.max_new_tokens' in resolved.origins:
        # A turn is one action, or has a unit for each of its steps that are trained.
        units = flow_models.units_of_turn(cfgs, resolved.algorithm) if spec.unit == 'denoised action' else 1
        changed['model_cfgs'] = cfgs.model_cfgs.model_copy(update={'max_new_tokens': units})
    return replace(resolved, cfgs=cfgs.model_copy(update=changed))


def with_event_defaults(resolved: Resolved) -> Resolved:
    """Returns the same run with the defaults for costs that an environment tells, where it does and no cost model.

    Such costs are events of an episode, counted from 0. It logs them.
    """
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    if not (algorithm.generates and algorithm.trains and algorithm.of_events):
        return resolved
    if cfgs.environment_cfgs.environment is None or cfgs.model_cfgs.cost_model_name_or_path is not None:
        return resolved
    wanted = dict(algorithm.of_events)
    if algorithm.critics:
        # Critics that know nothing yet would lead the policy away from what it was taught.
        warmup = WARMUP_ROLLOUTS * steps_of_rollout(cfgs, algorithm)
        most = cfgs.train_cfgs.max_steps
        wanted['critic_warmup_steps'] = warmup if most is None else min(warmup, most // WARMUP_SHARE)
    if resolved.given('train_cfgs.lambda_init'):
        wanted['lambda_max'] = max(wanted['lambda_max'], algorithm.lambda_init)
    wanted = {key: value for key, value in wanted.items() if not resolved.given(f'train_cfgs.{key}')}
    logger.info(
        'defaults for costs of an environment: %s', ', '.join(f'{key}: {value}' for key, value in wanted.items())
    )
    return replace(
        resolved,
        cfgs=cfgs.model_copy(update={'train_cfgs': cfgs.train_cfgs.model_copy(update=wanted)}),
        algorithm=algorithm.model_copy(update=wanted),
    )


def _on_its_pipeline(resolved: Resolved) -> Resolved:
    """Reads the adapter of a pipeline, given as the model, as the pipeline and the adapter to start from.

    Raises SettingsError for one that the run would not train on.
    """
    cfgs = resolved.cfgs
    source = cfgs.model_cfgs.model_name_or_path
    if not is_lora_folder(source):
        return resolved
    if resolved.algorithm.trains and not cfgs.lora_cfgs.use_lora:
        raise SettingsError(
            [
                f'model_cfgs.model_name_or_path: {source} holds a LoRA adapter, and this run trains the full model. '
                'Set lora_cfgs.use_lora to train the adapter on.'
            ]
        )
    base = base_of(source)
    logger.info('%s is an adapter of %s, which the run starts from', source, base)
    models = cfgs.model_cfgs.model_copy(update={'model_name_or_path': base})
    started = cfgs.diffusion_cfgs.model_copy(update={'lora_weights': source})
    return replace(resolved, cfgs=cfgs.model_copy(update={'model_cfgs': models, 'diffusion_cfgs': started}))


def _with_its_text_encoders(resolved: Resolved) -> Resolved:
    """Takes text encoders for components where nothing trains and the adapter to generate with adapts them."""
    own = resolved.cfgs.diffusion_cfgs
    if resolved.algorithm.trains or own.lora_weights is None:
        return resolved
    own = own.model_copy(update={'train_text_encoder': trains_text(own.lora_weights)})
    return replace(resolved, cfgs=resolved.cfgs.model_copy(update={'diffusion_cfgs': own}))


def _defaults(resolved: Resolved, spec: DiffusionSpec) -> dict[str, Any]:
    algorithm, adapts = resolved.algorithm, resolved.cfgs.lora_cfgs.use_lora
    adapter_rate = ONLINE_ADAPTER_RATE if algorithm.generates else ADAPTER_RATE
    # Of the mean error over the elements, not of a log-probability: Diffusion-DPO's β of 5000 halved, flows' of 2000.
    scale = (50.0 if algorithm.generates else 1000.0) if spec.process.prediction == 'flow' else 2500.0
    return {
        **dict.fromkeys(('learning_rate', 'critic_lr'), adapter_rate if adapts else FULL_RATE),
        'scale_coeff': 1000.0 if algorithm.name == 'kto' else scale,
        **({'gradient_checkpointing': False} if spec.no_checkpointing else {}),
        **({'num_generations': 4} if algorithm.name == 'saferlhf' else {}),
        **(OF_DENOISERS if algorithm.generates else {}),
    }
