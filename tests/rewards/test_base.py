"""Functions by name, their options, and what becomes of wrong ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from align_anything.core.errors import RewardError, SettingsError
from align_anything.rewards.base import (
    call_reward,
    check_options,
    get_reward,
    register_reward,
    reward_names,
)
from tests.rewards.common import completion

OWN = """
from align_anything.rewards.base import register_reward

@register_reward('{name}')
def own(completions, *, word: str = 'please', times: int = 1):
    return [float(completion.response.count(word) >= times) for completion in completions]

def unregistered(completions):
    return [1.0 for completion in completions]
"""
TWO = [completion('a', source='rows:1'), completion('b', source='rows:2')]


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / 'own.py'
    path.write_text(OWN.format(name=f'own-{tmp_path.name}'))
    return path


def test_names() -> None:
    assert {'format', 'math', 'choice', 'exact_match', 'math_verifier'} <= set(reward_names())
    with pytest.raises(RewardError, match="unknown reward 'exact_mach'. Did you mean 'exact_match'"):
        get_reward('exact_mach')
    with pytest.raises(RewardError, match="reward 'math' is registered twice"):
        register_reward('math')(lambda completions: [])


def test_own_file(own_file: Path, tmp_path: Path) -> None:
    own = get_reward(f'{own_file}:own')
    assert own is get_reward(f'{own_file}:own-{tmp_path.name}')
    options = check_options('own', own, {'times': 2})
    assert options == {'word': 'please', 'times': 2}
    assert call_reward('own', own, [completion('please, please'), completion('please')], options) == [1.0, 0.0]
    assert call_reward('unregistered', get_reward(f'{own_file}:unregistered'), TWO, {}) == [1.0, 1.0]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('missing.py:own', 'there is no file'),
        ('own.py', 'names a file but no reward in it: write .*own.py:Name'),
        ('own.py:owm', "has no reward 'owm'. Did you mean 'own'.* Rewards there: own, "),
        # Imported into the file, not of it.
        ('own.py:register_reward', 'has no reward'),
        ('broken.py:own', "broken.py cannot be imported: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
    ],
)
def test_own_file_errors(own_file: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / 'broken.py').write_text('import no_such_module_at_all')
    with pytest.raises(RewardError, match=message):
        get_reward(f'{tmp_path}/{name}')


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        check_options('length', get_reward('length'), {'max_lenght': 5, 'cache': 0})
    assert caught.value.problems == [
        "reward 'length' needs the option 'max_length'. Its options: max_length, cache.",
        "option 'cache' of reward 'length' is 0: Input should be greater than 0. Its options: max_length, cache.",
        "reward 'length' has no option 'max_lenght'. Did you mean 'max_length'? Its options: max_length, cache.",
    ]
    with pytest.raises(SettingsError, match="reward 'format' has no option 'strict'. Its options: none."):
        check_options('format', get_reward('format'), {'strict': True})


def test_annotations_that_mean_nothing_are_told(tmp_path: Path) -> None:
    (tmp_path / 'own.py').write_text('from __future__ import annotations\ndef own(completions: Sequence): ...\n')
    with pytest.raises(SettingsError, match="reward '.*own.py:own': name 'Sequence' is not defined in the annotations"):
        check_options(f'{tmp_path}/own.py:own', get_reward(f'{tmp_path}/own.py:own'), {})


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ([1.0], r'returned 1 number\(s\) for 2 completion\(s\)'),
        (None, 'returned NoneType, but should return a list'),
        (numpy.ones(2), 'returned ndarray, but should return a list'),
        ([0.0, math.nan], 'gave nan to rows:2, not a finite number'),
        ([math.inf, 0.0], 'gave inf to rows:1'),
        ([0.0, '1'], 'gave str to rows:2'),
        ([0.0, None], 'gave NoneType to rows:2'),
    ],
)
def test_what_is_not_one_finite_number_each(values: object, message: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'own' {message}"):
        call_reward('own', lambda completions: values, TWO, {})


def test_numbers_become_floats() -> None:
    values = call_reward('own', lambda completions: (True, numpy.float32(0.5)), TWO, {})
    assert values == [1.0, 0.5] and all(type(value) is float for value in values)


@pytest.mark.parametrize(
    ('function', 'message'),
    [
        (lambda completions: [1 / (c.response != 'b') for c in completions], 'failed on rows:2: ZeroDivisionError: '),
        (
            lambda completions: [1 / (len(completions) < 2) for _ in completions],
            'failed on 2 completions together, on none of them alone: ZeroDivisionError: ',
        ),
    ],
)
def test_exceptions_of_foreign_code_name_the_row(function: Callable, message: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'own' {message}"):
        call_reward('own', function, TWO, {})


def test_errors_of_the_house_pass_through() -> None:
    def refuse(completions: list) -> list[float]:
        raise RewardError('the service is gone')

    with pytest.raises(RewardError, match='^the service is gone$'):
        call_reward('own', refuse, TWO, {})
