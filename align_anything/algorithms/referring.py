"""The settings of algorithms that compare the policy with a reference model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from align_anything.algorithms.base import Algorithm
from align_anything.configs.effects import NO_DEEPSPEED_FILE, Effect, Effects, Facts, excludes
from align_anything.configs.schema import RunCfgs


def without_adapter_is_reference(cfgs: RunCfgs, algorithm: Reference) -> bool:
    """Whether switching the adapter off gives the reference: not when training goes on from a trained adapter."""
    # Imported here for the sake of --help: it takes transformers along.
    from align_anything.models.adapter import find_adapter
    from align_anything.models.diffusion.saved_lora import is_lora_folder

    source, named = cfgs.model_cfgs.model_name_or_path, algorithm.reference_model_name_or_path
    if cfgs.diffusion_cfgs.lora_weights is not None:
        return cfgs.lora_cfgs.use_lora and named == source
    fresh = find_adapter(source) is None and not is_lora_folder(source)
    return cfgs.lora_cfgs.use_lora and named in (None, source) and fresh


def _is_a_copy(facts: Facts) -> bool:
    return facts.algorithm.scores_beforehand or not without_adapter_is_reference(facts.cfgs, facts.algorithm)


REFERS = Effect(
    lambda facts: facts.algorithm.refers,
    'it means nothing without a reference, and this run has none: its coefficient is 0; leave it out.',
    by=('train_cfgs.beta', 'train_cfgs.kl_coeff', 'train_cfgs.kl_loss_coeff', 'train_cfgs.reference_coeff'),
)
COPIED = Effect(
    _is_a_copy,
    'it means nothing under use_lora, where the reference is the model without the adapter and not a copy; leave it '
    'out.',
    by=('lora_cfgs.use_lora',),
    off=(None, 'auto'),
)


class Reference(Algorithm):
    """Base of the algorithms that read the scores of a reference: the policy as it was before training."""

    takes_effect: ClassVar[Effects] = {
        'reference_model_name_or_path': REFERS,
        'reference_ds_cfgs': (REFERS, COPIED, excludes('train_cfgs.engine', 'fsdp', why=NO_DEEPSPEED_FILE)),
        'reference_dtype': (REFERS, COPIED),
    }

    @property
    def refers(self) -> bool:
        return True

    @property
    def scores_beforehand(self) -> bool:
        """Whether the reference scores all rows before training, where it may be a copy for that alone."""
        return False

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

    @property
    def scores_beforehand(self) -> bool:
        return self.reference_cache_dir is not None
