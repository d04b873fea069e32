"""Prompts whose responses are all worth the same give way to others, and a killed run goes on with the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.types import Example, Piece, Response
from align_anything.rollouts.experience import Rollout, complete, informative_first
from tests.trainers.runs import lines, run, text_rows, write_rows
from tests.trainers.test_online import Tiny, argv, dies_in, metrics_of, named
from tests.trainers.test_resume import assert_same

ROWS, ROUNDS = 30, 2
REWARDS = """
def third(completions):
    '''0, 1 and 2 for the responses to every third row; those to the others are all worth nothing.'''
    numbers = [int(item.source.rpartition(':')[2]) for item in completions]
    return [float((number % 3 == 0) * (place % 3)) for place, number in enumerate(numbers)]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('sampling')
    rows = text_rows(ROWS)
    rows[5]['instruction'] = 'sun ' * 120  # leaves no tokens for a response
    write_rows(folder / 'rows.jsonl', rows)
    (folder / 'rewards.py').write_text(REWARDS)
    return folder


def response(ids: torch.Tensor, finished: bool) -> Response:
    per_unit = {'rollout': torch.zeros(len(ids))}
    return Response(ids, torch.ones(len(ids)), per_unit=per_unit, finished=finished)


def rollout_of(scores: list[list[float]]) -> Rollout:
    """Responses of one token that is the number of the prompt, with a reward that is ten times the score."""
    responses = [
        [response(torch.tensor([number]), finished=True) for _ in of_prompt] for number, of_prompt in enumerate(scores)
    ]
    prompts = [Example(Piece(torch.tensor([7]), torch.zeros(1)), [], f'row {number}') for number in range(len(scores))]
    flat = torch.tensor([score for of_prompt in scores for score in of_prompt])
    return Rollout(complete(prompts, responses), {'ten': 10 * flat}, flat)


@pytest.mark.parametrize(
    ('prompts', 'expected'),
    # The second, the fourth and the fifth differ; the others fill up in their order.
    [(2, [1, 3]), (3, [1, 3, 4]), (4, [1, 3, 4, 0]), (9, [1, 3, 4, 0, 2])],
)
def test_prompts_whose_responses_differ_come_first(prompts: int, expected: list[int]) -> None:
    scores = [[1.0, 1.0], [0.0, 1.0], [0.3, 0.3], [2.0, -1.0], [5.0, 4.0]]
    chosen = informative_first(rollout_of(scores), prompts)
    assert [example.source for example in chosen.examples] == [f'row {number}' for number in expected]
    assert [int(response.ids) for response in chosen.responses] == [number for number in expected for _ in (0, 1)]
    assert chosen.scores.tolist() == pytest.approx([score for number in expected for score in scores[number]])
    assert torch.equal(chosen.rewards['ten'], 10 * chosen.scores)


def test_rollouts_are_joined() -> None:
    nothing, first, second = rollout_of([]), rollout_of([[1.0, 0.0]]), rollout_of([[2.0, 2.0], [3.0, 4.0]])
    whole = nothing.with_more(first).with_more(nothing).with_more(second)
    assert whole.differing == [True, False, True] and nothing.differing == []
    assert whole.scores.tolist() == [1.0, 0.0, 2.0, 2.0, 3.0, 4.0]
    assert torch.equal(whole.rewards['ten'], 10 * whole.scores) and len(whole.responses) == 6
    assert informative_first(nothing, 3).examples == []


@pytest.mark.extended
def test_a_killed_run_goes_on_with_the_prompts_that_were_not_taken_yet(
    folder: Path, tiny: Tiny, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        'reward_functions': f'[{folder}/rewards.py:third]',
        'dynamic_sampling_rounds': ROUNDS,
        'beta': 0.0,
        'log_completions': 1,
        'eval_strategy': 'no',
        'save_interval': 8,
        'save_total_limit': 2,
    }
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    ended = run(argv(folder, whole, tiny('qwen2'), **changes), 2, algorithm=named('grpo'))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    records = metrics_of(whole)
    # Two passes of two steps over each rollout, however many prompts it took.
    assert [record['step'] for record in records] == [4, 8, 12]
    # Every rank generates three responses to each of its first two prompts, and to two more while it has too few.
    assert max(record['train/responses'] for record in records) > 12
    assert all(0 < record['train/uninformative'] < 1 for record in records)
    # The first epoch is behind the first two rollouts, and none of its prompts came twice.
    first = [record['source'] for record in lines(whole / 'completions.jsonl') if record['step'] < 12]
    assert records[1]['train/epoch'] <= 1 and all(first.count(source) == 3 for source in first)
    run(argv(folder, broken, tiny('qwen2'), **changes), 2, algorithm=named('grpo'), before=dies_in('update', 8))
    assert (broken / 'slice_8').is_dir() and not (broken / 'slice_end').exists()
    ended = run(argv(folder, broken, tiny('qwen2'), '--resume', 'auto', **changes), 2, algorithm=named('grpo'))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    assert_same(whole, broken)
    assert (broken / 'completions.jsonl').read_text() == (whole / 'completions.jsonl').read_text()
