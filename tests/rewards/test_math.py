"""Mathematics is compared by its meaning, in any thread, and within a limited time."""

from __future__ import annotations

import logging
import threading

import pytest

from align_anything.core.errors import RewardError
from align_anything.rewards.base import NoGroundTruth, get_reward
from align_anything.rewards.math_checker import MathChecker, math_checker
from tests.rewards.common import reward


@pytest.mark.parametrize(
    ('golden', 'response', 'expected'),
    [
        # What the prompt of Math-Zero-RL asks for.
        ('$27$', '<think> a </think><answer> $27$ </answer>', 1),
        ('$27$', '<answer>27</answer>', 1),
        ('$27$', '<answer> \\boxed{27} </answer>', 1),
        ('27', 'So the final answer is $27$.', 1),
        (27, '3 times 9 is 27', 1),
        ('She sold 48/2 = <<48/2=24>>24 and 48.\n#### 72', 'Adding up: 72', 1),
        ('27', '一共有3个，答案是27个。', 1),
        ('\\frac{1}{2}', '<answer>0.5</answer>', 1),
        ('$2\\sqrt{2}$', '\\boxed{\\sqrt{8}}', 1),
        ('x+1', '<answer>$1+x$</answer>', 1),
        ('(1,2)', '$(1,2)$', 1),
        ('50%', '1/2', 1),
        ('3,000', '3000', 1),
        ('$x=5$', '5', 1),
        # Wrong, and what a careless reader takes for right.
        ('$27$', '<answer> $28$ </answer>', 0),
        ('\\frac{1}{2}', '2', 0),
        ('2\\sqrt{3}', '2', 0),
        ('x+1', '1', 0),
        ('-5', '5', 0),
        ('27', '<think>It could be 27', 0),
        ('27', '<think>27</think><answer>28</answer>', 0),
        ('27', '<answer></answer>', 0),
        ('27', '', 0),
        ('27', '\\frac{', 0),
    ],
)
def test_meaning(golden: object, response: str, expected: float) -> None:
    assert reward('math', response, golden) == expected


def test_words_are_compared_as_text_and_sentences_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger='align_anything'):
        assert [reward('math', answer, 'no idea') for answer in ('No idea.', '$no idea$', 'idea')] == [1, 1, 0]
        assert not caplog.messages
        golden = 'She sold forty eight clips in April and half as many in May'
        assert reward('math', golden, golden, source='sums.jsonl:9') == 1
        assert not caplog.messages
        assert reward('math', '72', golden, source='sums.jsonl:9') == 0
    assert 'the golden answer of sums.jsonl:9 is a sentence' in caplog.text
    with pytest.raises(NoGroundTruth, match=r"rows:1 has no golden answer.*meta\['ground_truth'\].*Math-Zero-RL"):
        reward('math', '27')
    with pytest.raises(NoGroundTruth, match=r"meta\['ground_truth'\] is no text but \"\['27', '28'\]\""):
        reward('math', '27', ['27', '28'])


@pytest.mark.parametrize('answer', ['(' * 5000 + '1' + ')' * 5000, '\\(' * 100_000, '\n' * 100_000, '\ud83d', '\0'])
def test_strange_answers_are_wrong(answer: str) -> None:
    assert reward('math', answer, '$x^2$') == 0


def test_outside_the_main_thread() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(reward('math', '<answer> $27$ </answer>', '$27$')))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_what_takes_for_ever_is_wrong_and_later_answers_are_read() -> None:
    assert reward('math', '$2^{10000000000}$', '1', {'timeout': 0.2}) == 0
    assert reward('math', '$1$', '1') == 1


def test_a_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('align_anything.rewards.math_checker.sys.executable', '/bin/false')
    with pytest.raises(RuntimeError, match='ended with code 1 at its start'):
        MathChecker().equal('1', '1', 1.0)


def test_forked_processes_have_a_checker_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = math_checker()
    assert math_checker() is own
    monkeypatch.setattr('os.getpid', lambda: -1)
    assert math_checker() is not own


@pytest.mark.parametrize('name', ['math', 'math_verifier'])
def test_without_math_verify_the_extra_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(RewardError, match=rf"reward '{name}' needs math_verify: .*align-anything\[math\]"):
        get_reward(name)
    assert get_reward('format')


@pytest.mark.parametrize(
    ('response', 'expected'),
    [
        ('<think>a</think>\n<answer> $27$ </answer>', 1.5),
        ('<think>a</think><answer> $28$ </answer>', 0.5),
        ('$27$', 1.0),
        ('no idea', 0.0),
    ],
)
def test_math_verifier(response: str, expected: float) -> None:
    assert reward('math_verifier', response, '$27$') == expected
