"""A calculator to call before answering."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from align_anything.environments.base import register_environment
from align_anything.environments.golden import GoldenNumber

OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
LONGEST, LARGEST, HIGHEST_POWER = 200, 10**30, 64


def calculate(expression: str) -> str:
    """Computes an arithmetic expression of numbers, + - * / // % ** and brackets.

    Args:
        expression: what to compute, such as `(3 + 4) * 2`.
    """
    if len(expression) > LONGEST:
        raise ValueError(f'an expression has {LONGEST} characters at most')
    value = _value(ast.parse(expression.strip(), mode='eval').body)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _value(node: ast.AST) -> int | float:
    if type(node) is ast.Constant and type(node.value) in (int, float):
        found = node.value
    elif type(node) is ast.UnaryOp and type(node.op) in OPERATORS:
        found = OPERATORS[type(node.op)](_value(node.operand))
    elif type(node) is ast.BinOp and type(node.op) in OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if type(node.op) is ast.Pow and abs(right) > HIGHEST_POWER:
            raise ValueError(f'powers go up to {HIGHEST_POWER}')
        found = OPERATORS[type(node.op)](left, right)
    else:
        raise ValueError('only numbers, + - * / // % ** and brackets')
    if type(found) is complex or abs(found) > LARGEST:
        raise ValueError('the result is too large, or no number')
    return found


@register_environment('calculator')
class Calculator(GoldenNumber):
    """Lends a calculator, and rewards an answer whose last number is the golden one of the row (`ground_truth`) by 1.

    Without a golden answer it rewards nothing.
    """

    def __init__(self) -> None:
        super().__init__([calculate])
