"""Each reward function against tables made by hand."""

from __future__ import annotations

import logging

import pytest

from align_anything.core.errors import SettingsError
from align_anything.rewards.answers import answer_of
from align_anything.rewards.base import NoGroundTruth
from align_anything.rewards.functions.choice import chosen_letter
from align_anything.rewards.functions.repetition import repeated_share
from tests.rewards.common import reward


@pytest.mark.parametrize(
    ('response', 'answer'),
    [
        ('27', '27'),
        ('<think>a</think><answer> 27\n</answer>', '27'),
        ('<think>maybe <answer>1</answer></think>\n<answer>27</answer>', '27'),
        ('<answer>1</answer> no, <answer>2</answer>', '2'),
        ('<think>a</think>\n\nIt is 27.', 'It is 27.'),
        # The prompt may end with the opening tag.
        ('a</think>27', '27'),
        ('<think>maybe 27', ''),
        ('<answer>27', '<answer>27'),
    ],
)
def test_where_the_answer_stands(response: str, answer: str) -> None:
    assert answer_of(response) == answer


@pytest.mark.parametrize(
    ('response', 'expected'),
    [
        ('<think>a</think><answer>b</answer>', 1),
        ('<think>a</think>\n<answer>b</answer>', 1),
        ('\n<think>\na\n</think>\n\n<answer>\nb\n</answer>\n', 1),
        ('<think>a</think> so <answer>b</answer>', 0),
        ('<think>a</think><answer>b</answer>.', 0),
        ('Well, <think>a</think><answer>b</answer>', 0),
        ('<think>a</think>', 0),
        ('<answer>b</answer><think>a</think>', 0),
        ('<think>a</think><answer>b', 0),
        ('<think>a<think>a</think><answer>b</answer>', 0),
        ('<think>a</think><answer>b</answer><answer>c</answer>', 0),
        ('<think> </think><answer>b</answer>', 0),
        ('<think>a</think><answer>\n</answer>', 0),
        ('', 0),
    ],
)
def test_format(response: str, expected: float) -> None:
    assert reward('format', response) == expected


@pytest.mark.parametrize(
    ('text', 'letter'),
    [
        ('C', 'C'),
        ('(c)', 'C'),
        ('C.', 'C'),
        ('C. Paris', 'C'),
        ('C) Paris, since A) is in Spain', 'C'),
        ('**C**', 'C'),
        ('It must be **C**, not A or B.', 'C'),
        ('$\\boxed{\\text{C}}$', 'C'),
        ('First \\boxed{A}, then \\boxed{C}', 'C'),
        ('The answer is (C), because A and B are wrong.', 'C'),
        ('the correct answer is: **C**', 'C'),
        ('Answer:\nC', 'C'),
        ('The answer is A. Wait, the answer is C.', 'C'),
        ('Option C is right.', 'C'),
        ('答案是C', 'C'),
        ("'C'", 'C'),
        ("The answer is 'C'", 'C'),
        ('A is wrong. The answer is "C".', 'C'),
        ('A is wrong. The answer is “C”, of course', 'C'),
        ('A is wrong. The answer is \\(C\\).', 'C'),
        ('A is wrong. The answer is $\\textbf{(C)}$', 'C'),
        ("It's not 'A', so 'C' it is. Answer: ‘C’", 'C'),
        ('\\[\\boxed{\\text{C}}\\]', 'C'),
        ('A cat sleeps there, so C', 'C'),
        # No choice, or several of them.
        ('A cat sleeps there.', None),
        ('The answer is a cat.', None),
        ('The answer is A or C.', None),
        ('The answer is A, B, C or D', None),
        ('A or C', None),
        ('A/C', None),
        ('A. one\nB. two\nC. three\nD. four', None),
        ('(A) is wrong while (C) is right', None),
        ("C'est la vie", None),
        ("'C'est la vie'", None),
        ("'A' or 'C'", None),
        ('E', None),
        ('', None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert chosen_letter(text, 'ABCD') == letter


def test_choice(caplog: pytest.LogCaptureFixture) -> None:
    assert reward('choice', '<think>A? B?</think><answer>C</answer>', 'C. Paris') == 1
    assert reward('choice', 'The answer is B', '(C)') == 0
    assert reward('choice', 'F', 'F', {'letters': 'ABCDEF'}) == 1
    with caplog.at_level(logging.WARNING, logger='align_anything'):
        assert reward('choice', 'none', 'Paris', source='quiz.jsonl:3') == 0
    assert 'the golden answer of quiz.jsonl:3 names none of ABCD' in caplog.text
    with pytest.raises(NoGroundTruth):
        reward('choice', 'C')


@pytest.mark.parametrize(
    ('response', 'golden', 'options', 'expected'),
    [
        (' the  Eiffel\ntower ', 'The Eiffel Tower', {}, 1),
        ('The Eiffel Tower.', 'The Eiffel Tower', {}, 0),
        ('<think>Big Ben?</think><answer>Eiffel</answer>', 'eiffel', {}, 1),
        ('eiffel', 'Eiffel', {'ignore_case': False}, 0),
        ('a  b', 'a b', {'ignore_whitespace': False}, 0),
        ('So it is #### 72', 'She sold 48 and 24. #### 72', {'extract': '#### (.+)'}, 1),
        ('#### 1 and then #### 72', '72', {'extract': r'#### (\d+)'}, 1),
        ('It is 72', '72', {'extract': '#### (.+)'}, 0),
        ('1994 and 2001', '2001', {'extract': r'\d{4}'}, 1),
        ('7', 7, {}, 1),
        ('Yes', [{'type': 'text', 'text': 'yes'}], {}, 1),
    ],
)
def test_exact_match(response: str, golden: object, options: dict, expected: float) -> None:
    assert reward('exact_match', response, golden, options) == expected


def test_regex() -> None:
    assert reward('regex', 'See [1].', options={'pattern': r'\[\d\]'}) == 1
    assert reward('regex', 'See 1.', options={'pattern': r'\[\d\]'}) == 0
    with pytest.raises(SettingsError, match="option 'pattern' of reward 'regex' is '\\('"):
        reward('regex', '', options={'pattern': '('})


@pytest.mark.parametrize(
    ('tokens', 'expected'),
    # max_length 100, cache 20: free up to 80, then a twentieth for each token.
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (5000, -1.0)],
)
def test_length(tokens: int, expected: float) -> None:
    given = reward('length', '', options={'max_length': 100, 'cache': 20}, length=tokens)
    assert given == pytest.approx(expected)


@pytest.mark.parametrize(
    ('text', 'ngram', 'share'),
    [
        ('', 2, 0.0),
        ('one', 2, 0.0),
        ('a b c d', 2, 0.0),
        # ab ba ab ba: 4 of which 2 are new.
        ('a b a b a', 2, 0.5),
        ('No. No! NO? no', 1, 0.75),
        ('你好你好你', 2, 0.5),
    ],
)
def test_repetition(text: str, ngram: int, share: float) -> None:
    assert repeated_share(text, ngram) == share
    assert reward('repetition', text, options={'ngram': ngram, 'max_penalty': -2}) == -2 * share
    with pytest.raises(SettingsError, match='max_penalty'):
        reward('repetition', text, options={'max_penalty': 1})


@pytest.mark.parametrize(
    ('response', 'expected'),
    [
        ('3 + 4 = 7', 0.8),
        ('seven', 0.2),
        ('7', 0.2),
        ('a + b', 0.2),
        # Tags are written with brackets and strokes, which are no mathematics.
        ('<think>7</think><answer>seven</answer>', 0.2),
    ],
)
def test_example_math(response: str, expected: float) -> None:
    assert reward('example_math', response) == expected


@pytest.mark.parametrize(
    ('response', 'expected'),
    [
        ('def f(x):\n    return x', 0.9),
        ('```python\nimport os\n```', 0.6),
        ('for x in y: print(x)\nif x:', 0.6),
        # Words that Python has too.
        ('I went there for a while, if only to return the book.', 0.3),
        ('import taxes are high\nreturn to sender', 0.3),
        ('    indented prose', 0.3),
    ],
)
def test_example_coding(response: str, expected: float) -> None:
    assert reward('example_coding', response) == expected


def test_code_is_not_run(tmp_path) -> None:
    mark = tmp_path / 'ran'
    assert reward('example_coding', f'import pathlib\nif True:\n    pathlib.Path({str(mark)!r}).touch()') == 0.9
    assert not mark.exists()


@pytest.mark.parametrize(
    ('response', 'expected'),
    [
        ('Bake it for an hour.', 1.0),
        ('Attack at dawn.', 0.2),
        ('Hackers use weapons.', 0.2),
        ('This is dangerous and illegal', 0.2),
        # Words in words, which say the opposite or something else.
        ('The pharmacy is harmless, in harmony.', 1.0),
    ],
)
def test_example_safety(response: str, expected: float) -> None:
    assert reward('example_safety', response) == expected
