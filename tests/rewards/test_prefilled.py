"""What a prompt begins of an answer is rewarded as if the policy had written it, here and by a service."""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.rewards.base import Completion, call_reward, check_options, get_reward, reward_names
from align_anything.rewards.messages import from_json
from align_anything.rewards.remote import RemoteReward
from align_anything.rewards.server import make_app
from tests.rewards.common import completion, reward, served

OPENED = '<|im_start|>assistant\n<think>\n'
ANSWERED = 'One and one.</think><answer>2</answer>'
CLIPPED = 'It may be $2$, that is 2'
OPTIONS = {'regex': {'pattern': r'\A<think>'}, 'length': {'max_length': 9, 'cache': 3}}
OF_THE_RESPONSE = {'length', 'repetition'}
"""Those that look at what the policy wrote itself."""
SHIPPED = {name for name in reward_names() if get_reward(name).__module__.startswith('align_anything.')}
"""Lessons register some of their own."""
OF_MEDIA = {name for name in SHIPPED if 'mean_by_response' in get_reward(name).__globals__}


@pytest.mark.parametrize('response', [ANSWERED, CLIPPED, 'B</think>The answer is 2', 'def f(x):\n    return 2</think>'])
@pytest.mark.parametrize('name', sorted(SHIPPED - OF_THE_RESPONSE - OF_MEDIA))
def test_an_opened_thought_counts_as_written(name: str, response: str) -> None:
    options = OPTIONS.get(name)
    expected = reward(name, f'<think>\n{response}', '2', options)
    assert reward(name, response, '2', options, prefix=OPENED) == expected
    assert reward(name, response, '2', options, prefix=OPENED, prefill='<think>\n') == expected


def test_what_was_opened_decides() -> None:
    assert reward('format', ANSWERED, prefix=OPENED) == 1 and reward('format', ANSWERED) == 0
    assert reward('math', ANSWERED, '2', prefix=OPENED) == 1
    assert reward('math', CLIPPED, '2') == 1 and reward('math', CLIPPED, '2', prefix=OPENED) == 0
    assert reward('choice', 'It is B', 'B', prefix=OPENED) == 0
    assert reward('exact_match', '2', '2') == 1 and reward('exact_match', '2', '2', prefix=OPENED) == 0


def test_special_tokens_in_a_response_are_read() -> None:
    assert reward('regex', 'Yes<|tool|>', options={'pattern': r'<\|tool\|>\Z'}) == 1


def test_a_service_is_told_and_knows_by_itself(tmp_path: Path) -> None:
    def seen(completions: list[Completion]) -> list[float]:
        told.extend((one.prefix, one.prefilled, one.answer) for one in completions)
        return [0.0] * len(completions)

    told: list[tuple[str, str, str]] = []
    asked = [
        completion(ANSWERED, prefix=OPENED),
        completion(' yes.', prefix='<|im_start|>assistant\nI think', prefill='I think'),
        completion('No.'),
    ]
    with served(make_app('seen', seen, {})) as url:
        RemoteReward(f'{url}/get_reward')(asked)
        RemoteReward(f'{url}/get_reward')(asked[:1])
        # One that knows of no prefills.
        import httpx2

        httpx2.post(f'{url}/get_reward', json={'prompts': ['x'], 'responses': [ANSWERED], 'prefixes': [OPENED]})
    expected = [(one.prefix, one.prefilled, one.answer) for one in asked]
    assert told == [*expected, expected[0], expected[0]]
    assert expected[1][2] == 'I think yes.'


def test_a_function_of_a_user_sees_it_too() -> None:
    asked = completion(ANSWERED, prefix=OPENED)
    assert asked.answer == '<think>\n' + ANSWERED and asked.response == ANSWERED
    assert from_json([asked.turn])[0]['content'][0] == {'type': 'text', 'text': '<think>\n'}
    function = get_reward('format')
    assert call_reward('format', function, [asked], check_options('format', function, {})) == [1.0]
