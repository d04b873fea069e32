"""Quantised base weights (bitsandbytes), for training adapters over them, and their way back to full precision."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from align_anything.core.errors import ModelError
from align_anything.models.adapter import bare_model
from align_anything.models.trainable import Components, component_of, count

if TYPE_CHECKING:
    from align_anything.configs.schema import BnbCfgs

INT8_RANGE = 127.0
BLOCK = 64
"""Weights in 4 bits that share a scale in float32."""
SCALES = 256
"""Scales that share one in float32 where they are in 8 bits themselves (Dettmers et al., 2023, arXiv:2305.14314)."""


def quantization_config(cfgs: BnbCfgs, dtype: torch.dtype, components: Components) -> BitsAndBytesConfig | None:
    """Returns how transformers shall quantise the language model, or None when `cfgs` asks for no quantisation.

    Towers, projectors and the output embedding keep `dtype`. Raises ModelError when bitsandbytes is missing, or when
    both or neither of 4 and 8 bits are asked for.
    """
    if not cfgs.use_bnb:
        return None
    if importlib.util.find_spec('bitsandbytes') is None:
        raise ModelError('bnb_cfgs.use_bnb needs bitsandbytes: pip install "align-anything[bnb]".')
    if cfgs.load_in_4bit == cfgs.load_in_8bit:
        raise ModelError('bnb_cfgs: set exactly one of load_in_4bit and load_in_8bit.')
    kept = [
        prefix for component, prefixes in components.items() if component != 'language_model' for prefix in prefixes
    ]
    compute = dtype if cfgs.bnb_4bit_compute_dtype == 'auto' else getattr(torch, cfgs.bnb_4bit_compute_dtype)
    return BitsAndBytesConfig(
        load_in_4bit=cfgs.load_in_4bit,
        load_in_8bit=cfgs.load_in_8bit,
        llm_int8_skip_modules=['lm_head', *kept],
        bnb_4bit_quant_type=cfgs.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=cfgs.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute,
        # ZeRO-3 gathers parameters of one type together, so the packed weights wear that of the others.
        bnb_4bit_quant_storage=dtype,
    )


def bytes_spared(cfgs: BnbCfgs, model: nn.Module, components: Components, width: int) -> float:
    """Returns how many bytes less the weights of a model without weights will take, once loaded as `cfgs` say.

    `width` are the bytes of one that is not quantised.
    """
    if not cfgs.use_bnb:
        return 0.0
    scales = (1 + 4 / SCALES if cfgs.bnb_4bit_use_double_quant else 4) / BLOCK
    each = width - (0.5 + scales if cfgs.load_in_4bit else 1)
    output = bare_model(model).get_output_embeddings()
    spared = 0.0
    for name, module in model.named_modules():
        kept = module is output or '.lora_' in name or '.modules_to_save' in name
        if not isinstance(module, nn.Linear) or kept or component_of(f'{name}.weight', components) != 'language_model':
            continue
        # In 8 bits each row has a scale in float32.
        spared += each * count(module.weight) - (0 if cfgs.load_in_4bit else 4 * module.out_features)
    return spared


def keep_trainable(model: nn.Module) -> None:
    """Keeps the layers from repacking their weights for a faster evaluation on some CPUs.

    The repacked weights have no backward pass, so training after the first evaluation would lose its gradients.
    """
    for module in model.modules():
        if _kind(module) == '4bit':
            module.support_avx512bf16_for_cpu = False


def is_quantised(model: nn.Module) -> bool:
    """Whether any layer of `model` holds quantised weights."""
    return bool(quantised_layers(model))


def quantised_layers(model: nn.Module) -> list[str]:
    """Names of the layers of `model` that hold quantised weights."""
    return [name for name, module in model.named_modules() if _kind(module) is not None]


def dequantised(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `state` with quantised weights in the float32 values that the layers compute with.

    `state` has the names of `model.state_dict()`, or some of them; the layers of `model` hold the scales. The model is
    not changed.
    """
    result = dict(state)
    for name, module in model.named_modules():
        kind, key = _kind(module), f'{name}.weight'
        if kind is None or key not in state:
            continue
        value = _dequantise(module, state[key], kind)
        for extra in [entry for entry in result if entry.startswith(f'{key}.') or entry == f'{name}.SCB']:
            del result[extra]
        result.pop(f'{name}.weight_format', None)
        result[key] = value
    return result


def _kind(module: nn.Module) -> str | None:
    # The parameter tells, by name: bitsandbytes need not be installed, and peft's wrappers are named like the layers.
    weight = module._parameters.get('weight')
    return {'Params4bit': '4bit', 'Int8Params': '8bit'}.get(type(weight).__name__)


def _dequantise(module: nn.Module, stored: Tensor, kind: str) -> Tensor:
    if kind == '8bit':
        scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        return stored.float() * (scales.float()[:, None] / INT8_RANGE)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(stored, module.weight.quant_state).float()
