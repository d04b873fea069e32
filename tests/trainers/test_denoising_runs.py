"""Whole runs of models that denoise: every algorithm, and what is refused by name before a model loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.losses.dpo import DPO_LOSSES
from align_anything.trainers.launch import settings_of
from align_anything.trainers.runs.denoised_rollouts import sampling_of
from align_anything.trainers.runs.settings import spec_of
from tests.harness.pairwise import first_of
from tests.trainers.denoising import PICTURES, SHOWN, metrics, named, offline, online, write_digits
from tests.trainers.runs import lines, poison, run, succeed, weights
from tests.trainers.test_scoring import argv as scoring_argv
from tests.trainers.test_scoring import with_head

Tiny = Callable[..., Path]
OFFLINE: dict[str, dict[str, Any]] = {
    'sft': {},
    'dpo': SHOWN,
    'kto': {**SHOWN, 'per_device_train_batch_size': 4},
}
GRPO: dict[str, dict[str, Any]] = {
    'plain': {},
    'cispo': {'loss_type': 'cispo', 'clip_range_high': 1e-4},
    'guard': {'loss_type': 'grpo_guard'},
    'dppo': {'loss_type': 'flow_dppo'},
    'gspo': {'importance_level': 'sequence'},
    'guided': {'guidance_scale': 2.0},
    'window': {'sde_window': 1},
    'sliding': {'sde_window': 1, 'sde_window_range': '[0, 1]', 'sde_window_slides_every': 1},
    'same-noise': {'same_noise_in_group': True},
    'dance': {'sde_kernel': 'dance_sde'},
    'cps': {'sde_kernel': 'cps'},
    'no-reference': {'beta': 0.0, 'update_iters': 2, 'learning_rate': 1e-7},
    'budget': {'max_length_per_batch': 64},
    'kl-of-flow-grpo': {'kl_form': 'flow_grpo', 'beta': 0.04},
}
FIRST = 'guard dppo guided sliding'.split()
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    'orpo': ('orpo', SHOWN, 'orpo needs of each unit the log-probability of one choice'),
    'simpo': ('simpo', SHOWN, 'simpo needs of each unit the log-probability of one choice'),
    'cpo': ('cpo', SHOWN, 'cpo needs of each unit the log-probability of one choice'),
    'entropy': ('grpo', {'entropy_coeff': 0.1}, 'grpo needs of each unit the log-probability of one choice'),
    'estimator': ('grpo', {'kl_estimator': 'k1'}, 'the KL divergence of transitions is exact, and k1 estimates one'),
    'bootstrap': ('ppo', {'bootstrap_truncated': True}, 'train_cfgs.bootstrap_truncated (command line'),
    'other critic': ('ppo', {'reward_critic_model_name_or_path': 'other'}, 'reward_critic_model_name_or_path (command'),
    'vllm': ('grpo', {'use_vllm': True}, 'vllm_cfgs.use_vllm (command line --use_vllm): it means nothing here'),
    'temperature': (
        'grpo',
        {'temperature': 0.7},
        'model_cfgs.temperature (command line --temperature): it means nothing here',
    ),
    'length': (
        'grpo',
        {'max_new_tokens': 64},
        'model_cfgs.max_new_tokens (command line --max_new_tokens): it means nothing here',
    ),
    'overlong': ('grpo', {'overlong_buffer': 4}, 'train_cfgs.overlong_buffer is for responses that may be clipped'),
    'samples': ('sft', {'sample_cache_dir': 'kept'}, 'data_cfgs.sample_cache_dir (command line'),
    'scores': ('dpo', {**SHOWN, 'reference_cache_dir': 'kept'}, 'train_cfgs.reference_cache_dir'),
    'grouping': (
        'sft',
        {'max_length_per_batch': 512, 'group_by_length': True},
        'train_cfgs.group_by_length (command line',
    ),
    'kernel': ('grpo', {'sde_kernel': 'ddim'}, 'ddim'),
    'window': ('grpo', {'sde_window': 3}, 'diffusion_cfgs.sde_window: a window of 3 steps'),
    'weighting': ('sft', {'loss_weighting': 'min_snr'}, 'min_snr'),
    'side': ('sft', {'resolution': 30}, 'sides must be multiples of 8. The nearest is 32 × 32'),
    'buckets': ('grpo', {'aspect_buckets': True}, 'diffusion_cfgs.aspect_buckets (command line --aspect_buckets): it'),
    'stream': (
        'sft',
        {'streaming': True, 'max_steps': 2},
        'data_cfgs.streaming: the rows of a stream cannot be encoded',
    ),
    'same noise': ('nft', {'same_noise_in_group': True}, 'all responses to a prompt would be one and the same'),
    'offline steps': ('sft', {'rollout_steps': 4}, 'diffusion_cfgs.rollout_steps'),
}


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight digits to draw, each beside another one."""
    return write_digits(tmp_path_factory.mktemp('digits'))


def changed(model: Path, out: Path, denoiser: str = 'transformer') -> bool:
    """Whether the saved denoiser has other weights than that of `model`; both have the same names."""
    before, after = weights(model / denoiser), weights(out / 'slice_end' / denoiser)
    assert before.keys() == after.keys()
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    return any(not torch.equal(before[key], after[key]) for key in before)


def trained(argv: list[str], name: str, out: Path, model: Path, denoiser: str = 'transformer') -> None:
    """Runs it, and looks whether each step had a gradient and the denoiser has changed."""
    succeed(argv, 1, PICTURES, algorithm=named(name))
    norms = metrics(out, 'train/grad_norm')
    assert norms and all(norm > 0 for norm in norms)
    assert changed(model, out, denoiser)


@pytest.mark.parametrize('name', OFFLINE)
def test_every_algorithm_on_data(name: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    argv = offline(tmp_path / 'run', tiny('sd3'), rows, max_steps=2, **OFFLINE[name])
    trained(argv, name, tmp_path / 'run', tiny('sd3'))


def test_all_losses_of_the_score_difference(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    settings = {**SHOWN, 'loss_type': f'[{", ".join(DPO_LOSSES)}]', 'label_smoothing': 0.01, 'scale_coeff': 10.0}
    trained(offline(tmp_path / 'run', tiny('sd3'), rows, max_steps=2, **settings), 'dpo', tmp_path / 'run', tiny('sd3'))


@pytest.mark.parametrize('how', first_of(GRPO, *FIRST))
def test_grpo_by_its_settings(how: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    trained(online(out, tiny('sd3'), rows, **GRPO[how]), 'grpo', out, tiny('sd3'))
    assert metrics(out, 'train/ratio')[0] == pytest.approx(1, abs=1e-6)
    assert metrics(out, 'train/rollout_drift')[0] == 0


@pytest.mark.parametrize(
    ('settings', 'same'),
    [({}, False), ({'sde_window': 1}, True), ({'sde_window': 1, 'same_noise_in_group': False}, False)],
    ids=['all steps', 'window', 'as asked'],
)
def test_responses_start_alike_where_few_steps_sample(
    settings: dict[str, Any], same: bool, tiny: Tiny, rows: Path, tmp_path: Path
) -> None:
    argv = online(tmp_path / 'run', tiny('sd3'), rows, **settings)
    resolved = settings_of(PICTURES, named('grpo'), argv, {})
    assert sampling_of(resolved, PICTURES, spec_of(resolved.cfgs), 1).same_noise == same


@pytest.mark.parametrize('name', first_of('rloo reinforce_plus_plus online_dpo'.split(), 'online_dpo'))
def test_every_algorithm_on_pictures_of_its_own(name: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    trained(online(tmp_path / 'run', tiny('sd3'), rows), name, tmp_path / 'run', tiny('sd3'))


PPO: dict[str, tuple[str, dict[str, Any]]] = {
    'full': ('sd3', {'guidance_scale': 2.0}),
    'adapters': ('sd3', {'use_lora': True, 'r': 4, 'save_full_model': True, 'critic_lr': 1e-3, 'sde_window': 1}),
    'unet': ('sd15', {'ds_cfgs': 'ds_z2_config.json'}),
}


@pytest.mark.parametrize('how', first_of(PPO, 'full', 'adapters'))
def test_ppo_has_a_critic_of_denoising_steps(how: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    family, settings = PPO[how]
    out, model = tmp_path / 'run', tiny(family)
    trained(online(out, model, rows, **settings), 'ppo', out, model, 'unet' if family == 'sd15' else 'transformer')
    assert metrics(out, 'train/ratio')[0] == pytest.approx(1, abs=1e-6)
    errors = metrics(out, 'train/reward_critic/value_loss')
    assert len(errors) == 2 and all(error > 0 for error in errors)


@pytest.mark.parametrize('name', first_of('sft dpo grpo'.split(), 'grpo'))
def test_a_ddpm_trains_too(name: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    argv = (
        online(out, tiny('sd15'), rows)
        if name == 'grpo'
        else offline(out, tiny('sd15'), rows, max_steps=2, **OFFLINE[name])
    )
    trained(argv, name, out, tiny('sd15'), 'unet')


def test_pictures_are_kept_within_a_cost_by_models_that_see_them(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    out, judge = tmp_path / 'run', with_head(tiny('llava'), tmp_path / 'judge')
    judges = {'reward_model_name_or_path': judge, 'cost_model_name_or_path': judge, 'reward_functions': None}
    trained(online(out, tiny('sd3'), rows, **judges), 'saferlhf', out, tiny('sd3'))
    assert len(metrics(out, 'train/reward/cost')) == 2 and all(value > 0 for value in metrics(out, 'train/multiplier'))
    assert not metrics(out, 'train/cost_critic/value_loss')
    critics = tmp_path / 'critics'
    trained(online(critics, tiny('sd3'), rows, **judges, advantage_estimator='gae'), 'saferlhf', critics, tiny('sd3'))
    assert all(metrics(critics, f'train/{role}_critic/value_loss') for role in ('reward', 'cost'))


@pytest.mark.parametrize('name', first_of('rm cost_model rm_score'.split(), 'cost_model'))
def test_models_that_see_pictures_learn_to_judge_them(name: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    out, model = tmp_path / 'run', tiny('llava')
    if name == 'rm_score':
        judge = with_head(model, tmp_path / 'judge')
        shown = SHOWN['train_template_kwargs']
        argv = scoring_argv(out, judge, rows, model_max_length=256, train_template_kwargs=shown)
        succeed(argv, 1, PICTURES, algorithm=named(name))
        scores = [record['scores'] for record in lines(out / 'scores.jsonl')]
        assert len(scores) == 8 and all(better != worse for better, worse in scores)
        return
    how = {**SHOWN, 'model_max_length': 256, 'max_steps': 2}
    if name == 'cost_model':
        how['template'] = f'{rows.parent}/safe.py:Judged'
    succeed(offline(out, model, rows, **how), 1, PICTURES, algorithm=named(name))
    assert len(metrics(out, 'train/grad_norm')) == 2 and all(norm > 0 for norm in metrics(out, 'train/grad_norm'))


@pytest.mark.parametrize('name', ['rm', 'ppo'])
def test_a_denoiser_judges_nothing(name: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    argv = (
        offline(tmp_path / 'run', tiny('sd3'), rows, **SHOWN)
        if name == 'rm'
        else online(tmp_path / 'run', tiny('sd3'), rows, reward_model_name_or_path=tiny('sd3'), reward_functions=None)
    )
    (ended,) = run(argv, 1, PICTURES, broken_loading, named(name if name == 'rm' else 'grpo'))
    assert ended.code == 2 and 'Traceback' not in ended.output, ended.output
    assert 'no score head' in ended.output or 'is a pipeline' in ended.output, ended.output


def test_settings_of_denoisers_mean_nothing_for_tokens(
    emitting: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    argv = offline(tmp_path / 'run', emitting('drawing'), rows, resolution=32)
    (ended,) = run(argv, 1, PICTURES)
    assert ended.code == 2 and 'diffusion_cfgs.resolution (command line --resolution)' in ended.output, ended.output
    assert 'writes tokens and denoises nothing' in ended.output


def test_a_file_may_be_written_for_both_kinds_of_models(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    file, out = tmp_path / 'both.yaml', tmp_path / 'run'
    file.write_text('model_cfgs:\n  temperature: 0.9\n  max_new_tokens: 64\ntrain_cfgs:\n  loss_type: grpo_guard\n')
    argv = online(out, tiny('sd3'), rows, '--config', file, max_steps=1)
    told = succeed(argv, 1, PICTURES, algorithm=named('grpo'))
    for key in ('model_cfgs.temperature', 'model_cfgs.max_new_tokens'):
        assert f'{key} (' in told
    assert told.count('it is left out') == 2


@pytest.mark.parametrize('why', REFUSED)
def test_what_means_nothing_for_a_denoiser_is_refused(why: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    name, settings, told = REFUSED[why]
    generates = named(name).generates
    argv = (online if generates else offline)(tmp_path / 'run', tiny('sd3'), rows, **settings)
    (ended,) = run(argv, 1, PICTURES, broken_loading, named(name))
    assert ended.code == 2 and told in ended.output, ended.output


def test_what_is_left_out_of_a_file_does_nothing(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    file, kept = tmp_path / 'both.yaml', tmp_path / 'kept'
    file.write_text(f'train_cfgs:\n  reference_cache_dir: {kept}\n')
    argv = offline(tmp_path / 'run', tiny('sd3'), rows, '--config', file, max_steps=1, **SHOWN)
    told = succeed(argv, 1, PICTURES, algorithm=named('dpo'))
    assert 'train_cfgs.reference_cache_dir (' in told and 'it is left out' in told
    assert 'reference: a frozen copy' in told and not kept.exists()


def test_evaluations_have_steps_and_guidance_of_their_own(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    seen = tmp_path / 'seen.jsonl'

    def watched(rank: int) -> None:
        from align_anything.rollouts.denoising import DenoisingRollouts

        generate = DenoisingRollouts.generate

        def watch(self: Any, examples: Any, sampling: Any) -> Any:
            found = generate(self, examples, sampling)
            units = [len(response.ids) for responses in found for response in responses]
            told = [sampling.steps, sampling.guidance.scale, sampling.kernel is None, sampling.responses, max(units)]
            with open(seen, 'a') as file:
                file.write(json.dumps(told) + '\n')
            return found

        DenoisingRollouts.generate = watch

    how = {'eval_datasets': rows, 'eval_template': 'Messages', 'eval_template_kwargs': '{images: ""}'}
    how |= {'eval_strategy': 'steps', 'eval_interval': 1, 'per_device_eval_batch_size': 8, 'save_best': 'reward'}
    how |= {'eval_rollout_steps': 5, 'eval_guidance_scale': 3.0, 'max_steps': 1}
    out = tmp_path / 'run'
    succeed(online(out, tiny('sd3'), rows, **how), 1, PICTURES, watched, named('grpo'))
    training, evaluation = [3, 1.0, False, 2, 2], [5, 3.0, True, 1, 0]
    assert lines(seen) == [training, evaluation] and len(metrics(out, 'eval/reward')) == 1


def test_a_step_with_scores_that_are_no_numbers_is_left_out(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    argv = offline(out, tiny('sd3'), rows, nonfinite_loss='skip')
    succeed(argv, 1, PICTURES, poison(2, rank_of_it=0))
    assert metrics(out, 'train/nonfinite_steps')[-1] == 1 and changed(tiny('sd3'), out)


def broken_loading(rank: int) -> None:
    """Lets no run load a denoiser or an encoder."""
    from align_anything.models.diffusion.spec import DiffusionSpec
    from align_anything.trainers.runs import pipelines

    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError('weights were loaded')

    pipelines.load_denoiser = DiffusionSpec.open = refuse
