"""Functions by name, their options, and what becomes of wrong ones."""

from __future__ import annotations

import asyncio
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy
import pytest

from align_anything.core.errors import RewardError, SettingsError
from align_anything.rewards.base import (
    call_reward,
    check_options,
    check_scores,
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
        ('script.py:own', 'script.py cannot be imported: SystemExit: 0'),
        (
            'broken.py:own',
            "broken.py cannot be imported: ModuleNotFoundError: No module named 'no_such.*its folder on PYTHON",
        ),
    ],
)
def test_own_file_errors(own_file: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / 'broken.py').write_text('import no_such_module_at_all')
    (tmp_path / 'script.py').write_text('import sys\n\nsys.exit(0)')
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
        ([0.0, [1]], 'gave list to rows:2'),
        ([0.0, numpy.float32('nan')], 'gave nan to rows:2, not a finite number'),
        # Finite where Python computes, and nowhere else.
        ([0.0, 1e39], r'gave 1e\+39 to rows:2, which float32 cannot hold: scale it down'),
        ([-1e300, 0.0], r'gave -1e\+300 to rows:1, which float32 cannot hold'),
        ([0.0, 10**400], 'gave a number to rows:2 that no float can hold: scale it down'),
        ([Fraction(10**400), 0.0], 'gave a number to rows:1 that no float can hold'),
    ],
)
def test_what_is_not_one_finite_number_each(values: object, message: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'own' {message}"):
        call_reward('own', lambda completions: values, TWO, {})


def test_the_largest_number_of_float32_is_one() -> None:
    largest = float(numpy.finfo(numpy.float32).max)
    assert call_reward('own', lambda completions: [largest, -largest], TWO, {}) == [largest, -largest]


def test_none_abstains() -> None:
    assert call_reward('own', lambda completions: [None, numpy.float32(2)], TWO, {}) == [None, 2.0]


def test_weighted_sums_are_finite_in_float32_too() -> None:
    check_scores([1.0, 3e38], TWO)
    with pytest.raises(RewardError, match='the weighted sum of the rewards of rows:2 is inf in float32'):
        check_scores([1.0, math.inf], TWO)


def test_async_functions_share_one_loop() -> None:
    """Which clients that a function keeps open need; also where the caller is in a loop of its own."""
    loops = set()

    async def judged(completions: list, *, pause: float = 0.0) -> list[float]:
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(pause)
        return [float(len(completion.response)) for completion in completions]

    async def elsewhere() -> list:
        return call_reward('own', judged, TWO, {'pause': 0.01})

    assert check_options('own', judged, {'pause': 1}) == {'pause': 1.0}
    assert call_reward('own', judged, TWO, {}) == asyncio.run(elsewhere()) == [1.0, 1.0]
    assert len(loops) == 1

    async def failing(completions: list) -> list[float]:
        raise KeyError('judge')

    with pytest.raises(RewardError, match="reward 'own' failed on 2 completions, of rows:1, rows:2: KeyError"):
        call_reward('own', failing, TWO, {})


def test_numbers_become_floats() -> None:
    values = call_reward('own', lambda completions: (True, numpy.float32(0.5)), TWO, {})
    assert values == [1.0, 0.5] and all(type(value) is float for value in values)


@pytest.mark.parametrize(
    ('number', 'rows'),
    [
        (1, 'rows:0'),
        (3, '3 completions, of rows:0, rows:1, rows:2'),
        (9, '9 completions, of rows:0, rows:1, rows:2, rows:3, rows:4 …'),
    ],
)
def test_foreign_code_is_called_once_also_where_it_fails(number: int, rows: str) -> None:
    """A second call may be one more to a paid judge."""
    calls = []

    def failing(completions: list) -> list[float]:
        calls.append(len(completions))
        return [1 / 0]

    asked = [completion(source=f'rows:{row}') for row in range(number)]
    with pytest.raises(RewardError, match=f"^reward 'own' failed on {rows}: ZeroDivisionError: division by zero"):
        call_reward('own', failing, asked, {})
    assert calls == [number]


def test_a_function_that_exits_has_failed() -> None:
    """The run would end with code 0 and no model; an async one would end the loop that the run waits for."""

    def leaving(completions: list) -> list[float]:
        sys.exit(0)

    async def leaving_later(completions: list) -> list[float]:
        sys.exit(0)

    for function in (leaving, leaving_later):
        with pytest.raises(RewardError, match="reward 'own' failed on 2 completions, of rows:1, rows:2: SystemExit: 0"):
            call_reward('own', function, TWO, {})


def test_errors_of_the_house_pass_through() -> None:
    def refuse(completions: list) -> list[float]:
        raise RewardError('the service is gone')

    with pytest.raises(RewardError, match='^the service is gone$'):
        call_reward('own', refuse, TWO, {})
