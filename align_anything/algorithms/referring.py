"""The settings of algorithms that compare the policy with a reference model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align_anything.algorithms.base import Algorithm


class Reference(Algorithm):
    """Base of the algorithms that read the scores of a reference: the policy as it was before training."""

    @property
    def refers(self) -> bool:
        return True

    reference_model_name_or_path: str | None = Field(
        None,
        description='Reference model; it must have the tokenizer of the trained one. null is the model that training '
        'starts from, which costs no memory under LoRA, where it is the model without the adapter.',
    )
    reference_ds_cfgs: str | None = Field(
        None,
        description='DeepSpeed file of a reference that is a copy: with ZeRO-3 it is partitioned, and offloaded if the '
        'file says so, else each device holds a full copy. null is the file of the run.',
    )
    reference_dtype: Literal['auto', 'bf16', 'fp16', 'fp32'] = Field(
        'auto', description='Precision of a reference that is a copy. auto is the precision of the run.'
    )


class Referring(Reference):
    """Base of the algorithms over fixed responses whose loss reads the reference."""

    reference_cache_dir: str | None = Field(
        None,
        description='Folder for the log-probabilities of the reference: all are computed once, before training, and no '
        'reference is held or asked while it trains, in this run or a later one. null computes them in every step.',
    )
