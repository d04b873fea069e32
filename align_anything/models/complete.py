"""Checkpoints that are used as they are: loaded with all of their weights, or not at all."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from align_anything.core.errors import ModelError

UNUSED = 'pooler.', 'masked_spec_embed'
"""How weights begin that checkpoints leave out and nothing here reads: a pooling head, the mask of SpecAugment."""


def load_complete(
    auto: Any,
    name: str,
    dtype: torch.dtype | str = 'auto',
    *,
    config: PreTrainedConfig | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Returns the model of a checkpoint, of the class that `auto` finds or is; random numbers are left as they are.

    With `weights`, by their names in that class, it is one of `config` that has these, and `name` is for messages.
    `options` are arguments of the class.

    Raises ModelError for a checkpoint that does not load, or lacks weights other than those of a pooling head; and for
    given weights that the class has no use for.
    """
    given = options if weights is None else {**options, 'config': config, 'state_dict': weights}
    try:
        with torch.random.fork_rng(devices=[]):
            model, report = auto.from_pretrained(
                name if weights is None else None,
                dtype=dtype,
                output_loading_info=True,
                # Mismatches are refused below.
                ignore_mismatched_sizes=True,
                **given,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f'{name} does not load: {error}') from error
    prefix = f'{model.base_model_prefix}.'
    missing = [key for key in sorted(report['missing_keys']) if not key.removeprefix(prefix).startswith(UNUSED)]
    if missing:
        raise ModelError(f'{name} lacks weights of {type(model).__name__}: {missing[:5]}.')
    if report['mismatched_keys']:
        key, found, wanted = sorted(report['mismatched_keys'])[0]
        raise ModelError(
            f'{name} does not fit the configuration of this {type(model).__name__}: {key} is {tuple(found)}, and not '
            f'{tuple(wanted)}.'
        )
    if weights is not None and report['unexpected_keys']:
        unused = sorted(report['unexpected_keys'])
        raise ModelError(f'{name} holds weights that {type(model).__name__} has none of: {unused[:5]}.')
    return model


def load_processor(name: str) -> Any:
    """Returns the processor of a checkpoint, with its tokenizer.

    Raises ModelError where it does not load, or one of the two is missing.
    """
    try:
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f'the tokenizer or processor of {name} does not load: {error}') from error
    if 'tokenizer' not in vars(processor):
        raise ModelError(
            f'{name} has a {type(processor).__name__} alone. Copy the tokenizer and processor_config.json from the '
            'original checkpoint.'
        )
    return processor


def load_tokenizer(name: str) -> Any:
    """Returns the tokenizer of a checkpoint. Raises ModelError where it does not load."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f'the tokenizer of {name} does not load: {error}') from error
