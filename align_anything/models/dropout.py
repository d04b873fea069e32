"""Dropout, for policies that are compared with themselves."""

from __future__ import annotations

from torch import nn


def switch_off_dropout(model: nn.Module) -> float:
    """Sets every probability of dropout in `model` to zero, LayerDrop too; returns the largest there was.

    What a module hands to a function it keeps as a number of its own, `attention_dropout` or so. The configuration
    stays as it is, so that a saved checkpoint says what the one did that it came from.
    """
    largest = 0.0
    for module in model.modules():
        own = vars(module)
        names = ['p'] if isinstance(module, nn.modules.dropout._DropoutNd) else [name for name in own if 'drop' in name]
        for name in names:
            if type(own[name]) in (float, int):
                largest, own[name] = max(largest, own[name]), 0.0
    return largest
