"""What kernels of attention on CUDA are asked for, in stand-ins on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch


class OnCuda:
    """What a kernel looks at of a tensor `(1, 2, 12, size)` before it takes it."""

    def __init__(self, size: int, dtype: torch.dtype, is_cuda: bool) -> None:
        self.shape, self.dtype, self.is_cuda = torch.Size((1, 2, 12, size)), dtype, is_cuda


def lacking(size: int, /, **more: int) -> pytest.MarkDecorator:
    """Parametrizes by queries and values of heads of a `size` that a kernel takes, a dropout, and whether it does.

    `more` are a `size` and a size of `values` that it does not take.
    """

    def case(taken: bool, **change: Any) -> Any:
        dtype, own = change.get('dtype', torch.bfloat16), change.get('size', size)
        query, value = (OnCuda(of, dtype, change.get('cuda', True)) for of in (own, change.get('values', own)))
        named = '-'.join(f'{name}={asked}' for name, asked in change.items())
        return pytest.param(query, value, change.get('dropout', 0.0), taken, id=named or 'plain')

    changes = [{'cuda': False}, {'dtype': torch.float32}, {'size': 512}, {'dropout': 0.1}]
    changes += [{name: asked} for name, asked in more.items()]
    cases = [case(True), case(True, dtype=torch.float16), *(case(False, **change) for change in changes)]
    return pytest.mark.parametrize(('query', 'value', 'dropout', 'taken'), cases)
