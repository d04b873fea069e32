"""Kernels of Liger for norms, rotations of queries and keys, and gated MLPs, as liger-kernel has them for each family.

Its losses are left out: log-probabilities are computed in chunks here, of labelled positions only.
"""

from __future__ import annotations

import importlib.util

import torch
from transformers import PreTrainedModel

from align_anything.core.errors import SettingsError

WITHOUT_LOSSES = {'cross_entropy': False, 'fused_linear_cross_entropy': False}


def require_liger() -> None:
    """Raises SettingsError where liger-kernel is not installed."""
    if importlib.util.find_spec('liger_kernel') is None:
        raise SettingsError(['train_cfgs.use_liger_kernel needs liger-kernel: pip install "align-anything[liger]".'])


def why_without_liger(model_type: str) -> str | None:
    """Says why models of this type compute without kernels of Liger on this machine; None where they compute with."""
    if not torch.cuda.is_available():
        return 'its Triton kernels need a CUDA device, and there is none'
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return None if model_type in MODEL_TYPE_TO_APPLY_LIGER_FN else f'liger-kernel has none for {model_type}'


def apply_liger(model: PreTrainedModel) -> None:
    """Gives a loaded model the kernels of its type; the names of its weights stay."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model, **WITHOUT_LOSSES)
