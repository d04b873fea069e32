"""What each algorithm needs of a unit's score, and whether it reads a reference."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.core.errors import SettingsError
from align_anything.core.types import NEEDS, Need
from align_anything.trainers.runs.data import NEED_WORDS, require_met

KNOWN = known_algorithms()
TABLE: dict[Need, set[str]] = {
    'score': {'sft', 'dpo', 'kto', 'online_dpo', 'nft', 'rm', 'rm_score', 'cost_model', 'generate'},
    'transition': {
        *('grpo', 'rloo', 'reinforce_plus_plus', 'multi_ppo', 'ppo', 'ppo_vllm', 'ppo_remote_rm', 'saferlhf'),
    },
    'probability': {'orpo', 'simpo', 'cpo'},
}
REFERS: list[tuple[str, dict[str, Any], bool]] = [
    *((name, {}, True) for name in ('dpo', 'kto', 'online_dpo', 'nft', 'grpo')),
    *((name, {}, False) for name in ('sft', 'orpo', 'simpo', 'cpo', 'rm', 'rm_score', 'cost_model', 'generate')),
    ('grpo', {'beta': 0.0}, False),
    ('nft', {'reference_coeff': 0.0}, False),
    *(
        case
        for name in ('rloo', 'reinforce_plus_plus', 'multi_ppo', 'ppo', 'ppo_vllm', 'ppo_remote_rm', 'saferlhf')
        for case in (
            (name, {}, True),
            (name, {'kl_coeff': 0.0}, False),
            (name, {'kl_coeff': 0.0, 'kl_loss_coeff': 0.1}, True),
        )
    ),
]


def asking_most(name: str) -> list[Algorithm]:
    """The algorithm as it is, and with an entropy term if it can have one."""
    settings: list[dict[str, Any]] = [{}, *([{'entropy_coeff': 0.1}] if 'entropy_coeff' in fields(name) else [])]
    return [KNOWN[name](**given) for given in settings]


def fields(name: str) -> set[str]:
    return {*KNOWN[name].model_fields}


def test_every_algorithm_needs_what_the_table_says() -> None:
    assert {need: {name for name in KNOWN if KNOWN[name]().needs == need} for need in NEEDS} == TABLE


def test_an_entropy_takes_a_probability() -> None:
    assert {name for name in KNOWN if 'entropy_coeff' in fields(name)} == TABLE['transition']
    assert {KNOWN[name](entropy_coeff=0.1).needs for name in TABLE['transition']} == {'probability'}


@pytest.mark.parametrize(('name', 'meets'), product(sorted(KNOWN), NEEDS))
def test_what_a_family_does_not_meet_is_refused_by_name(name: str, meets: Need) -> None:
    spec: Any = SimpleNamespace(model_type='points', meets=meets)
    for algorithm in asking_most(name):
        if name == 'nft' and meets == 'probability':
            continue  # of units that are chosen there is no noise, see below
        if NEEDS.index(algorithm.needs) <= NEEDS.index(meets):
            require_met(algorithm, spec)
            continue
        with pytest.raises(SettingsError) as refused:
            require_met(algorithm, spec)
        for words in (name, "'points'", NEED_WORDS[algorithm.needs], NEED_WORDS[meets]):
            assert words in str(refused.value)


def test_every_algorithm_says_whether_it_refers() -> None:
    assert {name for name, _, _ in REFERS} == {*KNOWN}


@pytest.mark.parametrize(('name', 'settings', 'refers'), REFERS)
def test_a_reference_is_read_by_those_whose_settings_ask_for_it(
    name: str, settings: dict[str, Any], refers: bool
) -> None:
    assert KNOWN[name](**settings).refers is refers


@pytest.mark.parametrize(
    ('name', 'settings', 'meets', 'words'),
    [
        ('grpo', {'loss_type': 'grpo_guard'}, 'probability', 'loss_type: grpo_guard is for denoising steps'),
        ('grpo', {'loss_type': 'flow_dppo'}, 'probability', 'loss_type: flow_dppo is for denoising steps'),
        ('nft', {}, 'probability', 'these models denoise nothing: choose grpo'),
        ('grpo', {'kl_estimator': 'k1'}, 'transition', 'is exact, and k1 estimates'),
        ('rloo', {'kl_loss_coeff': 0.1, 'kl_loss_estimator': 'k1'}, 'transition', 'is exact, and k1 estimates'),
        ('rloo', {'missing_eos_penalty': 1.0}, 'transition', 'missing_eos_penalty is for'),
        ('ppo', {'overlong_buffer': 4}, 'transition', 'overlong_buffer is for'),
        ('ppo', {'bootstrap_truncated': True}, 'transition', 'bootstrap_truncated is for'),
        ('saferlhf', {'bootstrap_truncated': True}, 'transition', 'bootstrap_truncated is for'),
    ],
)
def test_settings_of_other_units_are_refused(name: str, settings: dict[str, Any], meets: Need, words: str) -> None:
    other = NEEDS[NEEDS.index('transition') + NEEDS.index('probability') - NEEDS.index(meets)]
    algorithm = KNOWN[name](**settings)
    require_met(algorithm, SimpleNamespace(model_type='points', meets=other))
    with pytest.raises(SettingsError, match=words) as refused:
        require_met(algorithm, SimpleNamespace(model_type='points', meets=meets))
    assert f"{name} of models of type 'points'" in str(refused.value)


def test_what_is_compared_needs_another() -> None:
    for number in (1, 2):
        algorithm = KNOWN['saferlhf'](advantage_estimator='rloo', num_generations=number)
        assert (
            bool(algorithm.problems_with('transition')) == bool(algorithm.problems_with('probability')) == (number == 1)
        )


def test_who_reads_predictions() -> None:
    """The reference's where it is in the loss, and of the policy that sampled where the loss tells how far it moved."""
    asked = {
        ('grpo', 'ppo'): ('reference',),
        ('grpo', 'grpo_guard'): ('reference', 'old'),
        ('grpo', 'flow_dppo'): ('reference', 'old'),
    }
    for (name, loss_type), roles in asked.items():
        assert KNOWN[name](loss_type=loss_type).companions == roles
        assert KNOWN[name](loss_type=loss_type, beta=0.0).companions == roles[1:]
    assert KNOWN['rloo']().companions == () and KNOWN['rloo'](kl_loss_coeff=0.1).companions == ('reference',)
    assert KNOWN['nft']().companions == ('old', 'reference')
    assert KNOWN['nft'](reference_coeff=0.0).companions == ('old',)
    assert KNOWN['dpo']().companions == () == KNOWN['sft']().companions
