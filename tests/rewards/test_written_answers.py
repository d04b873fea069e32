"""Answers as plain text writes them: numbers with exponents and scales, units, functions, dates and ratios."""

from __future__ import annotations

import pytest

from align_anything.rewards.answers import answer_of
from align_anything.rewards.math_equality import equal

SAME = [
    ('1000', r'1\,000'),
    ('3:45 PM', '3:45 p.m.'),
    ('10:30 a.m.', '10:30 AM'),
    (r'1.5 \times 10^{6}', '1.5 x 10^6'),
    (r'6.02 \times 10^{-23}', '6.02e-23'),
    (r'\frac{1}{10^8}', '0.00000001'),
    ('5 m/s', '5 meters per second'),
    (r'50\text{ mph}', '50 miles per hour'),
    (r'2\pi', '2*pi'),
    (r'\frac{\pi}{6}', 'pi/6'),
    (r'\ln 2', 'ln 2'),
    (r'\sin x', 'sin(x)'),
    ('e^{x}', 'exp(x)'),
    ('3+4i', '3 + 4 i'),
    (r'(-\infty,1)\cup(2,\infty)', 'x<1 or x>2'),
    ('1.5 million', '1500000'),
    (r'\$1.5 \text{ million}', '1.5 million dollars'),
    (r'2 \text{ billion people}', '2,000,000,000'),
    ('10^{-3}', '10^-3'),
    (r'(-\infty, \infty)', r'\mathbb{R}'),
    ('1:2:3', '2:4:6'),
    ('2024-01-05', 'The date is 2024-01-05.'),
]
OTHERS = [
    ('1.5 million', '1.5'),
    ('1.5 million', '1.5 billion'),
    ('1:2:3', '1:3:2'),
    ('1:2:3', '1/6'),
    (r'6.02 \times 10^{-23}', '6.03e-23'),
    (r'6.02 \times 10^{-23}', '6.02e-24'),
    ('e^{-40}', 'e^{-41}'),
    (r'\frac{1}{10^8}', '0.00000002'),
    ('2024-01-05', '2018'),
    ('2024-01-05', '2024-05-01'),
    ('1/12/2024', '2/24/2024'),
    ('3:45 PM', '3:45 AM'),
    ('5 m/s', '5 meters per hour'),
    (r'(-\infty,1)\cup(2,\infty)', 'x<1 or x>3'),
]


@pytest.mark.parametrize(('golden', 'answer'), SAME)
def test_what_is_written_otherwise_means_the_same(golden: str, answer: str) -> None:
    assert equal(golden, answer_of(answer)) and equal(golden, answer_of(f'\\boxed{{{golden}}}'))


@pytest.mark.parametrize(('golden', 'answer'), OTHERS)
def test_what_only_looks_alike_means_something_else(golden: str, answer: str) -> None:
    assert not equal(golden, answer_of(answer))
