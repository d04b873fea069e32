"""The card of a reward model says how it was trained, what range its scores have and which template it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.reporting.card import write_score_card

# Scores 3 and 5 of chosen answers, 1 and 3 of rejected ones: their mean is 3, that of the squares 11.
EVALUATION = {'chosen_reward': 4.0, 'rejected_reward': 2.0, 'squared_score': 11.0, 'reward_accuracy': 0.75}


@pytest.fixture
def spec(tiny: Callable[..., Path]) -> FamilySpec:
    return load_spec(tiny('qwen2'))


@pytest.mark.parametrize(('algorithm', 'title'), [('rm', '# Reward model'), ('cost_model', '# Cost model')])
def test_a_card_with_an_evaluation(algorithm: str, title: str, spec: FamilySpec, tmp_path: Path) -> None:
    write_score_card(tmp_path, algorithm=algorithm, source='some/model', spec=spec, evaluation=EVALUATION, step=7)
    text = (tmp_path / 'README.md').read_text()
    assert title in text and f'`{algorithm}`' in text and '`some/model`' in text
    assert spec.renderer.template.strip() in text
    assert 'mean 3.000 and the standard deviation 1.414' in text and '75.0% of the pairs' in text
    numbers = json.loads((tmp_path / 'scores.json').read_text())
    assert numbers.pop('std') == pytest.approx(2**0.5)
    assert numbers == {'step': 7, 'mean': 3.0, 'chosen_mean': 4.0, 'rejected_mean': 2.0, 'accuracy': 0.75}


def test_a_card_without_one_claims_no_range(spec: FamilySpec, tmp_path: Path) -> None:
    write_score_card(tmp_path, algorithm='rm', source='some/model', spec=spec, evaluation={}, step=7)
    assert 'range of its scores is unknown' in (tmp_path / 'README.md').read_text()
    assert [path.name for path in tmp_path.iterdir()] == ['README.md']
