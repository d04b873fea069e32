"""Compiling the layers of the models of a run, where it asks for that and it can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import ModelError
from align_anything.core.logging import get_logger
from align_anything.engines.deepspeed_config import zero_stage
from align_anything.models.compiling import compile_layers

logger = get_logger(__name__)


def compile_if_asked(cfgs: RunCfgs, config: Mapping[str, Any], layers: Callable[[], Sequence[nn.Module]]) -> None:
    """Has the `layers` of a model compiled that an engine will take with `config`, or says why not.

    That of the run can be compiled, or the run has ended before; a model beside it need not.
    """
    if not cfgs.train_cfgs.torch_compile:
        return
    if zero_stage(config) == 3:
        logger.warning('torch_compile: a model beside the policy is not compiled, since ZeRO-3 shares its weights.')
        return
    try:
        found = layers()
    except ModelError as error:
        logger.warning('torch_compile: a model beside the policy is not compiled. %s', error)
        return
    compile_layers(found)
