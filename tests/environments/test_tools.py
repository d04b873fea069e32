"""Functions as tools: what the policy is told of them, and what comes back of calls, right and wrong."""

from __future__ import annotations

from typing import Literal

import pytest

from align_anything.core.errors import WorldError
from align_anything.environments.base import Call, Said, Step
from align_anything.environments.golden import last_number
from align_anything.environments.tools import FunctionTools, schema_of
from align_anything.environments.worlds.calculator import Calculator, calculate


def weather(city: str, days: int = 1, unit: Literal['C', 'F'] = 'C') -> dict[str, object]:
    """Tells the weather
    of a city.

    Args:
        city: its name,
            in English.
        days (int): how many.

    Returns:
        A record.
    """
    if city == 'Atlantis':
        raise LookupError('there is no such city')
    return {'city': city, 'days': days, 'unit': unit}


def called(environment: FunctionTools, *calls: Call) -> tuple[list[str], Step]:
    step = environment.step(Said('', calls))
    return [message['content'] for message in step.observation.messages], step


def test_the_schema_is_that_of_the_signature() -> None:
    function = schema_of(weather)['function']
    assert (function['name'], function['description']) == ('weather', 'Tells the weather of a city.')
    parameters = function['parameters']
    assert parameters['required'] == ['city'] and parameters['type'] == 'object'
    assert parameters['properties']['city'] == {'type': 'string', 'description': 'its name, in English.'}
    assert parameters['properties']['days'] == {'type': 'integer', 'default': 1, 'description': 'how many.'}
    assert parameters['properties']['unit']['enum'] == ['C', 'F']


def test_calls_come_back_in_order_and_errors_are_told() -> None:
    tools = FunctionTools([weather])
    good = Call('weather', {'city': 'Rome', 'days': '2'})
    bad = [
        Call('wether', {}),
        Call('weather', {}),
        Call('weather', {'city': 'Rome', 'hours': 3}),
        Call('weather', {'city': 'Rome', 'unit': 'K'}),
        Call('weather', {'city': 'Atlantis'}),
    ]
    texts, step = called(tools, good, *bad)
    assert texts[0] == '{"city": "Rome", "days": 2, "unit": "C"}'
    assert "Did you mean 'weather'?" in texts[1] and 'city: Field required' in texts[2] and 'hours' in texts[3]
    assert texts[5] == 'Error: LookupError: there is no such city'
    assert all(text.startswith('Error: ') for text in texts[1:]) and step.info['tool_errors'] == 5 and not step.done
    assert all(message['role'] == 'tool' and message['name'] == 'wether' for message in step.observation.messages[1:2])
    assert tools.step(Said('Sunny.')) == Step(done=True) and not tools.rewards and Calculator().rewards


def test_a_call_that_cannot_be_read_and_a_result_that_cannot_be_told_are_errors_too() -> None:
    def keyed() -> dict[tuple[int, ...], str]:
        return {(1, 2): 'x'}

    tools = FunctionTools([keyed])
    step = tools.step(Said('<tool_call>{', problem='it is no JSON'))
    assert 'it is no JSON' in step.observation.messages and step.info == {'tool_errors': 1} and not step.done
    (text,), step = called(tools, Call('keyed', {}))
    assert text.startswith('Error: TypeError') and step.info['tool_errors'] == 1


def test_what_no_call_can_give_is_refused() -> None:
    def more(*words: str) -> str:
        return ''

    with pytest.raises(WorldError, match='names all of its arguments'):
        FunctionTools([more])
    with pytest.raises(WorldError, match='the same name'):
        FunctionTools([weather, weather])

    async def later(city: str) -> str:
        return ''

    with pytest.raises(WorldError, match='later is async'):
        FunctionTools([later])
    with pytest.raises(WorldError, match="which '<lambda>' is none of"):
        FunctionTools([lambda city: ''])


@pytest.mark.parametrize(
    ('expression', 'value'),
    [('2 + 3 * 4', '14'), ('(1+2)**2', '9'), ('7 / 2', '3.5'), ('8 / 2', '4'), ('-7 // 2 % 3', '2'), ('1e3', '1000')],
)
def test_the_calculator_computes(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize('expression', ['9**9**9', 'a + 1', '__import__("os")', '1' * 300, '10**40', '(-8)**0.5', ''])
def test_and_refuses_what_is_no_arithmetic(expression: str) -> None:
    (text,), step = called(Calculator(), Call('calculate', {'expression': expression}))
    assert text.startswith('Error: ') and step.info['tool_errors'] == 1


def test_and_division_by_zero_is_told() -> None:
    (text,), _ = called(Calculator(), Call('calculate', {'expression': '1 / 0'}))
    assert text == 'Error: ZeroDivisionError: division by zero'


def test_the_last_number_of_an_answer_is_judged() -> None:
    world = Calculator()
    world.reset({'ground_truth': '1,234'}, 0)
    assert world.step(Said('It is 1234.')) == Step(reward=1.0, done=True, info={'success': True})
    assert world.step(Said('1234, or 5.')).reward == 0.0 and world.step(Said('No idea.')).reward == 0.0
    world.reset({}, 0)
    assert world.step(Said('7')).reward is None
    assert last_number('-3.5 apples') == -3.5 and last_number('none') is None
