"""What rewards the responses of a run: what is refused of it, and a service and a model that answer well or badly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import find_run
from align_anything.configs.resolve import Resolved, resolve
from align_anything.core.errors import RewardError, SettingsError
from align_anything.core.types import Example, Piece, Response
from align_anything.rollouts.experience import Rollout
from align_anything.trainers.loops.online import OnlineLoop
from align_anything.trainers.runs.rewarding import make_rewards, rewards_to_learn_from
from align_anything.trainers.runs.roles import ModelJudge
from tests.learning.preferences import LESSONS
from tests.learning.tasks import row
from tests.rewards.common import completion
from tests.rewards.test_remote import Service
from tests.trainers.runs import lines, run, write_rows
from tests.trainers.test_online import argv

Tiny = Callable[..., Path]


def settings(*more: str, algorithm: str = 'grpo', environ: dict[str, str] | None = None) -> Resolved:
    needed = ('model_name_or_path', 'train_datasets', 'train_template', 'output_dir')
    given = [part for key in needed for part in (f'--{key}', 'any')]
    known = known_algorithms()
    return resolve('text_to_text', algorithm, known[algorithm], known, [*given, *more], environ or {})


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (
            ('--remote_rm_weight', '2'),
            r'remote_rm_weight \(command line --remote_rm_weight\): it means nothing',
        ),
        (('--remote_rm_weight', '1'), 'remote_rm_weight'),  # the default, but somebody thought of it
        (('--remote_rm_timeout', '5'), 'remote_rm_timeout .* without model_cfgs.remote_rm_url; give that too'),
        (('--remote_rm_retry_times', '0'), 'remote_rm_retry_times'),
        (('--remote_rm_batch_size', '8'), 'remote_rm_batch_size'),
        (('--remote_rm_send_media', 'True'), 'remote_rm_send_media'),
        (('--reward_model_weight', '0.5'), 'without model_cfgs.reward_model_name_or_path'),
    ],
)
def test_settings_of_a_reward_that_is_not_asked_for_are_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings('--reward_functions', '[format]', *given)


def test_only_what_was_given_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings('--reward_functions', '[format]')
    settings('--remote_rm_url', 'http://localhost:1', '--remote_rm_weight', '2')
    preset = settings(algorithm='ppo_remote_rm')
    assert not preset.given('model_cfgs.remote_rm_url') and preset.cfgs.model_cfgs.remote_rm_url
    settings('--remote_rm_timeout', '5', algorithm='ppo_remote_rm')
    (tmp_path / 'default.yaml').write_text('reward_cfgs:\n  reward_model_weight: 0.5\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match='reward_model_weight'):
        settings('--config', 'default.yaml')
    with pytest.raises(SettingsError, match='reward_model_weight'):
        settings(environ={'ALIGN_ANYTHING__REWARD_CFGS__REWARD_MODEL_WEIGHT': '0.5'})


def test_no_weights_are_not_the_weights_of_one_function() -> None:
    given = ('--reward_functions', '[format]', '--reward_weights', '[]')
    with pytest.raises(SettingsError, match='0 numbers for 1 reward_functions'):
        make_rewards(settings(*given).cfgs)


@pytest.mark.parametrize(
    'given',
    [
        ('--environment', 'number_game', '--environment_weight', '0'),
        ('--reward_functions', '[format]', '--reward_weights', '[0]'),
    ],
)
def test_what_rewards_alone_has_a_weight(given: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r'has a weight of 0 .* nothing would be learned'):
        rewards_to_learn_from(settings(*given).cfgs)
    assert make_rewards(settings(*given).cfgs), 'where nothing is trained, rewards may be looked at alone'
    assert rewards_to_learn_from(
        settings('--reward_functions', '[format, repetition]', '--reward_weights', '[0, 1]').cfgs
    )


def test_a_function_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cfgs = settings('--reward_functions', '[format, math_verifier]').cfgs
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(RewardError, match=r"reward 'math_verifier' needs math_verify"):
        make_rewards(cfgs)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


def about_pictures(folder: Path, model: Path, service: Service, **changes: Any) -> list[str]:
    asked = LESSONS['text_image_to_text'](folder, 'train', 4)
    values = {
        'train_datasets': write_rows(folder / 'rows.jsonl', map(row, asked)),
        'train_template': 'Messages',
        'model_max_length': 1024,
        'reward_functions': '[]',
        'remote_rm_url': service.url,
        'num_generations': 3,
        'max_steps': 4,
        'eval_strategy': 'no',
        'log_interval': 1,
        **changes,
    }
    return argv(folder, folder / 'out', model, **values)


def test_a_service_is_told_all_and_may_fail_for_a_while(tiny: Tiny, service: Service, tmp_path: Path) -> None:
    service.script = [503, None, lambda question: [float(length) for length in question['lengths']]]
    pair, algorithm = find_run('text_image_to_text', 'grpo')
    changes = {'remote_rm_batch_size': 4, 'remote_rm_send_media': True, 'remote_rm_weight': 0.5}
    given = about_pictures(tmp_path, tiny('llava'), service, **changes)
    (ended,) = run(given, 1, pair, algorithm=algorithm)
    assert ended.code == 0, ended.output
    assert ended.output.count('attempt 1 of 4') == 1 and ended.output.count('attempt 2 of 4') == 1
    # Two prompts with three responses each; the first request was sent three times.
    assert [len(asked['responses']) for asked in service.asked] == [4, 4, 4, 2]
    first, again, *_, last = service.asked
    assert first == again
    assert {len(values) for values in last.values()} == {2} and last['prompts'][0] == last['prompts'][1]
    turns = LESSONS['text_image_to_text'](tmp_path, 'train', 4)
    assert set(first['ground_truths']) <= {question.answer for question in turns}
    pictures = [part for turn in last['conversations'][0] for part in turn['content'] if part['type'] == 'image']
    assert pictures and all(part['image'].startswith('data:image/png;base64,') for part in pictures)
    (record,) = lines(tmp_path / 'out' / 'metrics.jsonl')
    lengths = [length for asked in service.asked[-2:] for length in asked['lengths']]
    assert record['train/reward'] == pytest.approx(0.5 * sum(lengths) / 6)


ABSTAINING = """
async def short(completions):
    return [None if completion.source.endswith(':1') else 1.0 for completion in completions]

def nobody(completions):
    return [None for completion in completions]

def huge(completions):
    return [3e38 for completion in completions]
"""


def test_functions_may_be_async_and_abstain(tiny: Tiny, service: Service, tmp_path: Path) -> None:
    service.script = [lambda question: [None] + [2.0] * (len(question['responses']) - 1)]
    (tmp_path / 'own.py').write_text(ABSTAINING)
    own = f'{tmp_path}/own.py'
    pair, algorithm = find_run('text_image_to_text', 'grpo')
    changes = {'reward_functions': f'["{own}:short", "{own}:nobody"]', 'log_completions': 1, 'normalize_reward': True}
    (ended,) = run(about_pictures(tmp_path, tiny('llava'), service, **changes), 1, pair, algorithm=algorithm)
    assert ended.code == 0, ended.output
    (record,) = lines(tmp_path / 'out' / 'metrics.jsonl')
    assert record['train/abstained/nobody'] == 1 and 'train/reward/nobody' not in record
    assert record['train/abstained/service'] == pytest.approx(1 / 6) and record['train/reward/service'] == 2
    shown = lines(tmp_path / 'out' / 'completions.jsonl')
    assert {one['rewards']['nobody'] for one in shown} == {None}
    for one in shown:
        given = [value for value in one['rewards'].values() if value is not None]
        assert one['reward'] == sum(given) and (one['rewards']['short'] is None) == one['source'].endswith(':1')


def test_a_sum_past_float32_ends_the_run_with_the_row(tiny: Tiny, service: Service, tmp_path: Path) -> None:
    service.script = [lambda question: [3e38] * len(question['responses'])]
    (tmp_path / 'own.py').write_text(ABSTAINING)
    pair, algorithm = find_run('text_image_to_text', 'grpo')
    changes = {'reward_functions': f'["{tmp_path}/own.py:huge"]'}
    (ended,) = run(about_pictures(tmp_path, tiny('llava'), service, **changes), 1, pair, algorithm=algorithm)
    assert ended.code == 2 and 'Traceback' not in ended.output
    assert re.search(r'sum of the rewards of \S*rows.jsonl:\d is inf in float32: scale reward_weights', ended.output)


def test_weights_are_finite() -> None:
    with pytest.raises(SettingsError, match='reward_weights'):
        settings('--reward_functions', '[format]', '--reward_weights', '[.nan]')


def test_rewards_of_unlike_scales_may_be_weighed_alike() -> None:
    """What the loop makes advantages of: each reward by its group's deviation, the penalty taken off afterwards."""
    responses = [[Response(torch.zeros(1), torch.ones(1), finished=number > 0) for number in range(3)] for _ in '12']
    examples = [Example(Piece(torch.zeros(1), torch.zeros(1)), own) for own in responses]
    rewards = {'points': torch.tensor([10.0, 20.0, 30.0, 7.0, 7.0, 7.0]), 'share': torch.tensor([0.2, 0.1, 0.0] * 2)}
    rollout = Rollout(examples, rewards, torch.zeros(6))

    def shaped(*more: str) -> list[float]:
        given = ('--reward_functions', '[format, math_verifier]', '--missing_eos_penalty', '0.5', *more)
        cfgs = settings(*given).cfgs
        loop = SimpleNamespace(cfgs=cfgs, algorithm=cfgs.train_cfgs, _weights={'points': 1.0, 'share': 0.5})
        return OnlineLoop._shaped(loop, rollout).tolist()

    assert shaped() == [-0.5, 0.0, 0.0, -0.5, 0.0, 0.0]
    found = shaped('--reward_aggregation', 'normalize_then_sum')
    assert found == pytest.approx([-1 + 0.5 - 0.5, 0, 1 - 0.5, 0.5 - 0.5, 0, -0.5], abs=1e-3)
    assert shaped('--multi_objective_aggregation', 'normalize_then_sum') == found


@pytest.mark.parametrize(
    ('given', 'algorithm', 'message'),
    [
        (('[format]',), 'grpo', 'it means nothing for one reward alone'),
        (('[format, length]',), 'ppo', 'with one response to a prompt'),
        (('[format, length]', '--normalize_reward', 'True'), 'grpo', 'and normalize_reward their sum'),
    ],
)
def test_a_scale_that_nothing_is_brought_to_is_refused(given: tuple[str, ...], algorithm: str, message: str) -> None:
    more = ('--reward_aggregation', 'normalize_then_sum')
    with pytest.raises(SettingsError, match=f'reward_aggregation .*{message}'):
        settings('--reward_functions', *given, *more, algorithm=algorithm)
    settings('--reward_functions', '[format]', '--remote_rm_url', 'http://localhost:1', *more)


def test_a_service_that_is_gone_ends_the_run(tiny: Tiny, service: Service, tmp_path: Path) -> None:
    service.script = [500]
    pair, algorithm = find_run('text_image_to_text', 'grpo')
    given = about_pictures(tmp_path, tiny('llava'), service, remote_rm_retry_times=0)
    (ended,) = run(given, 1, pair, algorithm=algorithm)
    assert ended.code == 2 and 'at last with status 500: boom. Check that it runs' in ended.output, ended.output
    assert 'Traceback' not in ended.output


def test_a_model_that_gives_no_number_names_the_row() -> None:
    """As one does whose training has gone wrong: every other check is of its files."""

    def encode_group(conversations: list[Any], train_on: str, start: int, judged: bool) -> Example:
        return Example(Piece(torch.zeros(1), torch.zeros(1)), [Piece(torch.zeros(1), torch.ones(1))] * 2)

    engine = SimpleNamespace(
        device='cpu',
        policy=SimpleNamespace(collate=lambda part: SimpleNamespace(to=lambda device: part)),
        score=lambda batch: SimpleNamespace(values=torch.tensor([0.5, torch.nan])),
    )
    judge = ModelJudge(
        'my-judge', engine, SimpleNamespace(encode_group=encode_group, audio_rate=None, codes=None), batch_size=2
    )
    first = completion(source='rows:1')
    with pytest.raises(RewardError, match='the model my-judge gave nan to rows:1, not a finite number'):
        judge([first, completion('No.', source='rows:1', conversation=first.conversation)])
