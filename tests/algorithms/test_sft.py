from __future__ import annotations

import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.sft import SFT
from align_anything.core.types import Scored
from align_anything.policies.token.collator import TokenCollator
from tests.policies.stub import TextFamily, example, piece


def test_term_and_count_are_those_of_the_weighted_tokens():
    batch = TokenCollator(TextFamily(), 'packed')(
        [example(piece(11, 12), piece(21, 22, weight=1.0), piece(23, weight=3.0))]
    )
    scored = Scored(torch.tensor([0.5, 0.25, 0.5]).log())
    algorithm = SFT()
    assert float(algorithm.counts(batch)['loss']) == 1 + 1 + 3
    # ln 2 + ln 4 + 3 ln 2 = 6 ln 2
    torch.testing.assert_close(algorithm.terms(batch, scored, {})['loss'], 6 * torch.tensor(2.0).log())
    assert set(algorithm.coefficients()) == set(algorithm.counts(batch)) == set(algorithm.terms(batch, scored, {}))


def test_every_algorithm_file_is_known():
    assert known_algorithms()['sft'] is SFT
