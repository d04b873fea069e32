"""Online runs: what rewards them, what they tell, what they refuse, and that a killed one goes on as if nothing was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.algorithms.base import Algorithm
from align_anything.cli.leaves import find_run
from align_anything.rollouts.hf import HFRollouts
from align_anything.trainers.loops.online import OnlineLoop
from tests.harness.pairwise import first_of, in_tiers
from tests.learning.preferences import LESSONS
from tests.learning.tasks import row
from tests.trainers.runs import die, lines, run, sft, text_rows, weights, write_rows
from tests.trainers.test_resume import assert_same
from tests.trainers.test_scoring import plain, turns, with_head

ROWS = 14
REWARDS = """
def brief(completions, *, longest: int = 20):
    return [float(item.finished) - item.length / longest for item in completions]

def varied(completions):
    return [float(len(item.response) % 5) for item in completions]

def broken(completions):
    return [float('nan') for _ in completions]
"""

Tiny = Callable[..., Path]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, one of which is too long to leave capacity for a response, and reward functions."""
    folder = tmp_path_factory.mktemp('online')
    rows = text_rows(ROWS)
    rows[5]['instruction'] = 'sun ' * 120
    write_rows(folder / 'rows.jsonl', rows)
    write_rows(folder / 'held-out.jsonl', text_rows(5, seed=1))
    (folder / 'rewards.py').write_text(REWARDS)
    return folder


def argv(folder: Path, output: Path, model: Path, *more: str, **changes: Any) -> list[str]:
    """2 prompts x 3 responses a rank and rollout; 2 passes of 2 micro-batches of 4 and 2, each its own step."""
    settings = {
        'num_generations': 3,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'update_iters': 2,
        'max_new_tokens': 6,
        'reward_functions': f'[{folder}/rewards.py:brief]',
        'max_skipped_ratio': 0.5,
        'max_steps': 12,
        'eval_datasets': folder / 'held-out.jsonl',
        'eval_template': 'Instruction',
        'per_device_eval_batch_size': 2,
        'eval_strategy': 'steps',
        'eval_interval': 8,
        'ds_cfgs': 'ds_z2_config.json',
        'num_workers': 1,
        **changes,
    }
    return sft(output, model, folder / 'rows.jsonl', *more, **settings)


def named(name: str) -> type[Algorithm]:
    return find_run('text_to_text', name)[1]


def metrics_of(output: Path) -> list[dict[str, Any]]:
    return [record for record in lines(output / 'metrics.jsonl') if 'train/reward' in record]


def test_a_run_tells_what_was_generated_and_what_it_was_worth(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    ended = run(argv(folder, tmp_path, tiny('qwen2'), log_completions=2, num_workers=0), 2, algorithm=named('grpo'))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    records = metrics_of(tmp_path)
    # 14 prompts, one skipped, 4 a rollout: an epoch has four rollouts, of four steps each.
    assert [record['step'] for record in records] == [4, 8, 12]
    assert records[-1]['train/skipped'] == 1 and 'fit beside max_new_tokens' in str(
        lines(tmp_path / 'skipped_samples.jsonl')
    )
    for record in records:
        assert record['train/rollout_drift'] < 1e-5
        assert record['train/response_length'] <= 6 and 0 <= record['train/truncated'] <= 1
        # brief: 1 for an end, less a twentieth for each token.
        expected = 1 - record['train/truncated'] - record['train/response_length'] / 20
        assert record['train/reward'] == pytest.approx(expected, abs=1e-5)
    written = lines(tmp_path / 'completions.jsonl')
    # Every second rollout, and the last.
    assert {record['step'] for record in written} == {8, 12} and {*written[0]['rewards']} == {'brief'}
    assert 'Responses after step 8' in ended[0].output and 'Responses after step 4' not in ended[0].output
    assert 'Responses after' not in ended[1].output
    (evaluated,) = (record for record in lines(tmp_path / 'metrics.jsonl') if 'eval/reward' in record)
    assert evaluated['step'] == 8
    timings = lines(tmp_path / 'timings.jsonl')[-1]
    assert all(timings[f'train/seconds/{name}'] > 0 for name in ('generation', 'reward', 'scoring', 'update', 'sync'))


@pytest.mark.parametrize('family', first_of(['qwen2', 'llama'], 'llama'))
def test_a_reward_model_reads_conversations_in_its_own_template(
    folder: Path, tiny: Tiny, tmp_path: Path, family: str
) -> None:
    """What it gave is what transformers' classifier gives to prompt and response."""
    judge = tmp_path / 'judge'
    judge.mkdir()
    with_head(tiny(family), judge)
    changes = {'max_steps': 4, 'log_completions': 1, 'eval_strategy': 'no', 'reward_functions': '[]'}
    ended = run(
        argv(folder, tmp_path / 'out', tiny('qwen2'), reward_model_name_or_path=judge, **changes),
        algorithm=named('rloo'),
    )
    assert ended[0].code == 0, ended[0].output
    rows = {row['instruction']: row for row in text_rows(ROWS)}
    records = lines(tmp_path / 'out' / 'completions.jsonl')
    assert records
    from align_anything.models.pretrained_model import load_spec

    spec = load_spec(tiny('qwen2'))
    for record in records:
        (asked,) = (text for text in rows if f'\n{text}<' in record['prompt'])
        ids = spec.tokenizer(record['response'], add_special_tokens=False).input_ids
        (expected,) = plain(judge, [turns(asked, spec.tokenizer.decode(ids, skip_special_tokens=True))])
        assert record['rewards']['model'] == pytest.approx(expected, abs=1e-4)


@pytest.mark.extended
def test_a_rank_whose_prompts_all_fell_out_keeps_step(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    judge = tmp_path / 'judge'
    judge.mkdir()
    with_head(tiny('qwen2'), judge)
    rows = write_rows(tmp_path / 'rows.jsonl', [text_rows(1)[0], {**text_rows(1)[0], 'instruction': 'sun ' * 120}])
    changes = {
        'train_datasets': rows,
        'per_device_prompt_batch_size': 1,
        'max_steps': 8,
        'eval_strategy': 'no',
        'reward_model_name_or_path': judge,
        'ds_cfgs': 'ds_z3_config.json',
        'critic_lr': 1e-3,
        'bootstrap_truncated': True,
    }
    ended = run(argv(folder, tmp_path / 'out', tiny('qwen2'), **changes), 2, algorithm=named('ppo'))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    assert [record['train/responses'] for record in metrics_of(tmp_path / 'out')] == [3.0] * 4


def test_safe_rlhf_weighs_what_a_cost_model_says(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    judge = tmp_path / 'judge'
    judge.mkdir()
    with_head(tiny('qwen2'), judge)
    changes = {
        'cost_model_name_or_path': judge,
        'reward_critic_model_name_or_path': judge,
        'threshold': -100,
        'lambda_init': 1,
        'critic_lr': 1e-3,
        'eval_strategy': 'no',
    }
    constant = {'critic_lr_scheduler_type': 'constant', 'critic_lr_warmup_ratio': 0.1}
    (refused,) = run(argv(folder, tmp_path / 'out', tiny('qwen2'), **constant), algorithm=named('saferlhf'))
    assert refused.code == 2 and "'constant' has no warm-up" in refused.output
    (refused,) = run(argv(folder, tmp_path / 'out', tiny('qwen2')), algorithm=named('saferlhf'))
    assert refused.code == 2 and 'cost_model_name_or_path is required' in refused.output
    (refused,) = run(
        argv(folder, tmp_path / 'out', tiny('qwen2'), **{**changes, 'cost_critic_model_name_or_path': tiny('llama')}),
        algorithm=named('saferlhf'),
    )
    assert refused.code == 2 and 'does not read the tokens of the policy' in refused.output
    (ended,) = run(argv(folder, tmp_path / 'out', tiny('qwen2'), **changes), algorithm=named('saferlhf'))
    assert ended.code == 0, ended.output
    records = metrics_of(tmp_path / 'out')
    multipliers = [record['train/multiplier'] for record in records]
    # Everything costs more than is allowed; the first rollout is within the delay.
    assert multipliers[0] == pytest.approx(1.0) and multipliers == sorted(multipliers) and multipliers[-1] > 1.5
    assert all(record['train/reward'] == record['train/reward/brief'] for record in records), 'a cost is no reward'
    assert {'train/cost_critic/value_loss', 'train/reward_critic/value_loss', 'train/reward/cost'} <= records[0].keys()


def test_online_dpo_learns_from_the_extremes(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    changes = {'reward_functions': f'[{folder}/rewards.py:varied]', 'eval_strategy': 'no'}
    algorithm = named('online_dpo')
    (refused,) = run(
        argv(folder, tmp_path, tiny('qwen2'), **changes, per_device_train_batch_size=3), algorithm=algorithm
    )
    assert refused.code == 2 and 'a multiple of 2 responses' in refused.output
    (ended,) = run(argv(folder, tmp_path, tiny('qwen2'), **changes), algorithm=algorithm)
    assert ended.code == 0, ended.output
    records = metrics_of(tmp_path)
    # Two prompts, so two pairs, in one micro-batch of four; two passes over them.
    assert [record['step'] for record in records] == [2, 4, 6, 8, 10, 12]
    assert {record['train/responses'] for record in records} == {3.0, 6.0}, 'one prompt is too long'
    assert any(record['train/reward_margin'] != 0 for record in records)


@pytest.mark.parametrize(
    ('pair', 'family'),
    [
        ('text_image_to_text', 'llava'),
        ('text_audio_to_text', 'qwen2_audio'),
        ('text_video_to_text', 'qwen2_vl'),
        ('any_to_text', 'qwen2_5_omni_thinker'),
        ('any_to_text', 'composed'),
    ],
)
def test_every_kind_of_media_is_responded_to_and_trained_on(pair: str, family: str, tiny: Tiny, tmp_path: Path) -> None:
    asked = LESSONS[pair](tmp_path, 'train', 6)
    rows = write_rows(tmp_path / 'rows.jsonl', map(row, asked))
    changes = {
        'train_datasets': rows,
        'train_template': 'Messages',
        'reward_functions': '[length]',
        'reward_kwargs': '{length: {max_length: 8, cache: 8}}',
        'max_steps': 2,
        'eval_strategy': 'no',
        'model_max_length': 1024,
        'log_completions': 1,
    }
    its_pair, algorithm = find_run(pair, 'grpo')
    (ended,) = run(argv(tmp_path, tmp_path / 'out', tiny(family), **changes), 1, its_pair, algorithm=algorithm)
    assert ended.code == 0, ended.output
    (record,) = metrics_of(tmp_path / 'out')
    # By the trainer, in another layout than by generation: they saw the same media.
    assert record['train/rollout_drift'] < 1e-4 and record['train/responses'] == 6
    page = (tmp_path / 'out' / 'completions.html').read_text()
    assert '<img' in page or '<audio' in page


def test_micro_batches_by_tokens_change_no_step(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    """One prompt is too long, so a rank has fewer responses, and fewer micro-batches, than the other."""
    changes = {
        'reward_functions': f'[{folder}/rewards.py:varied]',
        'max_steps': 4,
        'per_device_prompt_batch_size': 3,
        'gradient_accumulation_steps': 2,
        'bootstrap_truncated': True,
        'eval_strategy': 'no',
    }
    records = []
    for budget in (None, 40):
        output = tmp_path / str(budget)
        given = argv(folder, output, tiny('qwen2'), **changes, max_length_per_batch=budget)
        ended = run(given, 2, algorithm=named('ppo'))
        assert [item.code for item in ended] == [0, 0], ended[0].output
        records.append(metrics_of(output))
    by_number, by_tokens = records
    assert by_number[-1]['step'] == 4
    for one, other in zip(by_number, by_tokens, strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=1e-4)


def dies_in(what: str, step: int) -> Callable[[int], None]:
    """Rank 1 is killed when it generates after `step` optimizer steps, or in the second update that follows them."""

    def before(rank: int) -> None:
        owner, name = {'rollout': (HFRollouts, '_generate'), 'update': (OnlineLoop, '_updated')}[what]
        inner = getattr(owner, name)

        def watched(self, *given):
            # An evaluation generates one response to each prompt.
            now = (
                self.version == step and given[2].responses > 1 if what == 'rollout' else self.progress.step == step + 1
            )
            if now and rank == 1:
                die()
            return inner(self, *given)

        setattr(owner, name, watched)

    return before


def supervised(folder: Path) -> dict[str, Any]:
    """Settings of a run with all that it may remember: a critic, an adaptive KL coefficient, its cursor in given data.

    One of those is empty; they are an epoch of two steps.
    """
    rows = text_rows(16, seed=2)
    rows[2]['output'] = ''
    given = {'ptx_datasets': write_rows(folder / 'given.jsonl', rows), 'ptx_template': 'Instruction'}
    return {**given, 'critic_lr': 1e-2, 'kl_target': 1e-3, 'kl_horizon': 60, 'kl_loss_coeff': 0.1}


@pytest.mark.parametrize(
    ('what', 'name', 'stage'),
    # Under ZeRO-3 the policy, its reference and the critic take twice as long.
    in_tiers([('rollout', 'ppo', 2), ('rollout', 'ppo', 3), ('update', 'grpo', 2)], [('rollout', 'ppo', 2)]),
)
def test_killed_in_rollout_and_in_update(
    folder: Path, tiny: Tiny, tmp_path: Path, what: str, name: str, stage: int
) -> None:
    changes = {
        'ds_cfgs': f'ds_z{stage}_config.json',
        'save_interval': 4,
        'save_total_limit': 2,
        'normalize_reward': True,
        'log_completions': 1,
        **(supervised(tmp_path) if name == 'ppo' else {}),
    }
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    ended = run(argv(folder, whole, tiny('qwen2'), **{**changes, 'save_total_limit': 0}), 2, algorithm=named(name))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    run(argv(folder, broken, tiny('qwen2'), **changes), 2, algorithm=named(name), before=dies_in(what, 8))
    assert (broken / 'slice_8').is_dir() and not (broken / 'slice_end').exists()
    ended = run(argv(folder, broken, tiny('qwen2'), '--resume', 'auto', **changes), 2, algorithm=named(name))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    assert 'after step 8 of 12' in ended[0].output
    assert_same(whole, broken)
    if name == 'ppo':
        told = [record['train/ptx_loss'] for record in metrics_of(whole)]
        assert told == sorted(told, reverse=True) and 'given.jsonl:3' in (whole / 'skipped_samples.jsonl').read_text()
        prices = [record['train/kl_coeff'] for record in metrics_of(whole)]
        assert len(set(prices)) == 3 and all(record['train/kl'] >= 0 for record in metrics_of(whole))
    for name in ('completions.jsonl', 'completions.html'):
        assert (broken / name).read_text() == (whole / name).read_text()


def test_adapters_are_their_own_reference(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    changes = {'use_lora': True, 'r': 4, 'lora_dropout': 0.0, 'max_steps': 8, 'eval_strategy': 'no'}
    changes |= {'log_interval': 8, 'log_completions': 1}
    changes['reward_functions'] = f'[{folder}/rewards.py:varied]'
    ended = run(argv(folder, tmp_path, tiny('qwen2'), **changes), algorithm=named('grpo'))
    assert ended[0].code == 0 and 'the model without the adapter' in ended[0].output
    (record,) = metrics_of(tmp_path)
    assert record['train/kl'] > 0 and weights(tmp_path / 'slice_end')
    # Rollouts are shown whether their metrics are recorded or not.
    assert {written['step'] for written in lines(tmp_path / 'completions.jsonl')} == {4, 8}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'reward_functions': '[]'}, 'nothing rewards the responses'),
        ({'reward_functions': '[exact_macth]'}, "Did you mean 'exact_match'"),
        ({'reward_functions': '[format]', 'reward_weights': '[1, 2]'}, '2 numbers for 1 reward_functions'),
        ({'reward_functions': '[format]', 'reward_kwargs': '{regex: {pattern: x}}'}, 'not among the reward_functions'),
        ({'num_generations': 1}, 'num_generations'),
        ({'loss_aggregation': 'sequence-mean-token-sum-norm'}, 'constant_length'),
        ({'reward_model_name_or_path': 'the policy'}, 'no score head'),
        ({'max_new_tokens': 500}, 'at most 0 fit beside max_new_tokens'),
        ({'max_length_per_batch': 64, 'group_by_length': True}, '--group_by_length): it means nothing where responses'),
        ({'train_on': 'last'}, '--train_on): it means nothing without data_cfgs.ptx_datasets'),
        ({'early_stopping_patience': 2}, 'set save_best: reward'),
        ({'loss_type': 'cispo', 'importance_level': 'sequence'}, 'cispo weighs single tokens'),
        ({'ptx_datasets': 'given.jsonl'}, 'ptx_template = None (default): is required'),
        ({'ptx_datasets': 'given.jsonl', 'ptx_template': 'Instruction'}, 'given.jsonl'),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path, tiny: Tiny, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = tiny('qwen2')
    changes = {key: model if value == 'the policy' else value for key, value in changes.items()}
    (ended,) = run(argv(folder, tmp_path, model, **changes), algorithm=named('grpo'))
    assert ended.code == 2 and message in ended.output, ended.output


def test_a_reward_that_is_no_number_ends_the_run_and_names_the_row(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    (ended,) = run(
        argv(folder, tmp_path, tiny('qwen2'), reward_functions=f'[{folder}/rewards.py:broken]'), algorithm=named('grpo')
    )
    assert ended.code == 2 and 'rows.jsonl:' in ended.output and 'nan' in ended.output
