"""Settings of low-rank adapters, and of the quantised weights under them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from align_anything.configs.base import Cfgs
from align_anything.configs.effects import Effects, needs


class LoraCfgs(Cfgs):
    """Low-rank adapters instead of training all weights."""

    takes_effect: ClassVar[Effects] = {
        '*': needs('lora_cfgs.use_lora', True),
        'vision_lora': needs('lora_cfgs.target_modules', 'auto'),
    }

    use_lora: bool = Field(False, description='Trains low-rank adapters and keeps the weights under them.')
    r: PositiveInt = Field(16, description='Rank of the adapters.')
    lora_alpha: float = Field(16, gt=0, description='Scale of the adapters, divided by the rank when applied.')
    lora_dropout: float = Field(0.1, ge=0, lt=1, description='Dropout on the inputs of the adapters.')
    use_rslora: bool = Field(False, description='Divides the scale by the square root of the rank instead.')
    use_dora: bool = Field(False, description='Learns the magnitude of each weight column apart from its direction.')
    target_modules: Literal['auto', 'all-linear'] | list[str] = Field(
        'auto',
        description='Modules that get an adapter, by name or by a regular expression over full names. auto is every '
        'linear layer of the language model, all-linear every one of the whole model but the output embedding.',
    )
    vision_lora: bool = Field(
        False, description='With target_modules auto, the linear layers of the vision tower get adapters too.'
    )
    modules_to_save: list[str] | None = Field(
        None,
        description='Modules that are trained in full beside the adapters and saved with them; `mm_proj` is whatever '
        'lies between the encoders and the language model.',
    )
    task_type: Literal['CAUSAL_LM', 'SEQ_CLS', 'FEATURE_EXTRACTION'] = Field(
        'CAUSAL_LM', description='Task that is written into the adapter configuration.'
    )
    inference_mode: bool = Field(False, description='Loads the adapters frozen. A run that trains them needs False.')
    save_full_model: bool = Field(
        False, description='Saves checkpoints with the adapters merged into the weights, not the adapters alone.'
    )

    @field_validator('task_type', mode='before')
    @classmethod
    def _without_enum_name(cls, value: Any) -> Any:
        return value.removeprefix('TaskType.') if isinstance(value, str) else value


class BnbCfgs(Cfgs):
    """Quantised base weights (bitsandbytes) under low-rank adapters."""

    takes_effect: ClassVar[Effects] = {
        '*': needs('bnb_cfgs.use_bnb', True),
        **{
            f'bnb_4bit_{key}': needs('bnb_cfgs.load_in_4bit', True)
            for key in ('quant_type', 'use_double_quant', 'compute_dtype')
        },
    }

    use_bnb: bool = Field(False, description='Loads the base weights quantised. Needs use_lora.')
    load_in_4bit: bool = Field(True, description='Quantises to 4 bits.')
    load_in_8bit: bool = Field(False, description='Quantises to 8 bits. Set load_in_4bit to False with it.')
    bnb_4bit_quant_type: Literal['nf4', 'fp4'] = Field('nf4', description='Number format of the 4-bit weights.')
    bnb_4bit_use_double_quant: bool = Field(True, description='Quantises the scales of the 4-bit blocks as well.')
    bnb_4bit_compute_dtype: Literal['auto', 'bfloat16', 'float16', 'float32'] = Field(
        'auto', description='Type that 4-bit weights are multiplied in. auto is the precision of the run.'
    )
