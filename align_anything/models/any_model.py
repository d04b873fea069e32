"""From a checkpoint of any architecture to a model: the family's own class where there is one, else transformers'."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from align_anything.core.errors import ModelError
from align_anything.core.logging import get_logger
from align_anything.models.architecture import plain_attention, skeleton_of, transformers_class
from align_anything.models.checkpoint import check_checkpoint, read_config, stored_tensor
from align_anything.models.families import accustomed_body, accustomed_class, loading_options, own_head
from align_anything.models.score import SCORE_HEAD, ScoreHead

logger = get_logger(__name__)
MOST_KEYS_LISTED = 12


class AnyModel:
    """Language models of every architecture, by their checkpoint. Not instantiated itself."""

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: str | Path, *, trust_remote_code: bool = False, **kwargs: Any
    ) -> PreTrainedModel:
        """Loads a checkpoint; further arguments go to `from_pretrained` of the class in transformers.

        Works inside and outside of DeepSpeed's `zero.Init`. Parameters that the architecture declares constant
        (sinusoidal positions) come frozen in both cases. Raises ModelError for a folder that is no checkpoint and
        for weights that do not fit the architecture.
        """
        check_checkpoint(model_name_or_path, trust_remote_code)
        config = read_config(model_name_or_path, trust_remote_code)
        kind = transformers_class(config, trust_remote_code)
        kwargs = {**loading_options(config.model_type), **kwargs}
        if kwargs.get('attn_implementation') == 'sdpa':
            kwargs['attn_implementation'] = plain_attention(kind, config)
        try:
            model, report = kind.from_pretrained(
                model_name_or_path,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                # Mismatches are refused below, with the missing keys beside them.
                ignore_mismatched_sizes=True,
                **kwargs,
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ModelError(f'{model_name_or_path} does not load as {kind.__name__}: {error}') from error
        _refuse_missing(report, kind, model_name_or_path)
        _keep_used_renames(model)
        _freeze_constants(model)
        return _accustom(model)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
        """Builds a model with random weights. Raises ModelError for an architecture without a language-model head."""
        return _accustom(transformers_class(config)._from_config(config, **kwargs))


class AnyModelForScore:
    """Models of every architecture with a head that gives each token one score, for rewards, costs and values."""

    @classmethod
    def from_pretrained(cls, model_name_or_path: str | Path, **kwargs: Any) -> PreTrainedModel:
        """Loads a checkpoint and its score head; a checkpoint without one gets a new head, the same on every rank.

        The head is a `ScoreHead` at `model.score`. Arguments and errors as `AnyModel.from_pretrained`.
        """
        model = AnyModel.from_pretrained(model_name_or_path, **kwargs)
        weight = stored_tensor(model_name_or_path, f'{SCORE_HEAD}.weight')
        return add_score_head(model, weight)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
        """Builds a model with random weights and a new head."""
        return add_score_head(AnyModel.from_config(config, **kwargs), None)


def add_score_head(model: PreTrainedModel, weight: torch.Tensor | None = None) -> PreTrainedModel:
    """Gives `model` a `ScoreHead` at `model.score`, with `weight` `(1, size)` or a first one; returns the model.

    A family that scores by itself gets its own head.
    """
    own = own_head(model.config.model_type)
    if own is not None:
        model.add_module(SCORE_HEAD, own(model))
        return model
    head = ScoreHead(model.config.get_text_config(decoder=True).hidden_size)
    if weight is not None:
        head.load_state_dict({'weight': weight})
    model.add_module(SCORE_HEAD, head.to(device=model.device, dtype=model.dtype))
    return model


def _accustom(model: PreTrainedModel) -> PreTrainedModel:
    """Gives a loaded model the behaviour of its family's class.

    The weights are loaded through the plain class because transformers finds the renames of older checkpoints by
    class name and leaves them out for classes defined elsewhere. An Accustomed class adds methods, never state; one
    for a class out of a checkpoint's own code, which is known only now, is joined with it here.
    """
    family = accustomed_class(model.config.model_type)
    if family is not None and not issubclass(family, nn.Module):
        body = accustomed_body(model.config.model_type)
        if body is not None:
            model.base_model.__class__ = _joined(body, type(model.base_model))
        model.__class__ = _joined(family, type(model))
    elif family is not None:
        if not issubclass(family, type(model)):
            raise ModelError(
                f'{family.__name__} is filed for {model.config.model_type}, whose class is {type(model).__name__}; '
                'an Accustomed class must derive from it.'
            )
        model.__class__ = family
        body = accustomed_body(model.config.model_type)
        if body is not None:
            model.base_model.__class__ = body
    return model


@cache
def _joined(methods: type, kind: type[nn.Module]) -> type[nn.Module]:
    return type(methods.__name__, (methods, kind), {'__module__': methods.__module__, '__doc__': methods.__doc__})


def _refuse_missing(report: dict[str, Any], kind: type[PreTrainedModel], source: str | Path) -> None:
    missing = sorted(report['missing_keys'])
    mismatched = [f'{entry[0]} {tuple(entry[1])} -> {tuple(entry[2])}' for entry in report['mismatched_keys']]
    if missing or mismatched:
        raise ModelError(
            f'the weights in {source} are not those of {kind.__name__}. '
            f'Missing: {_listed(missing)}. Other shapes: {_listed(mismatched)}. '
            f'Not used: {_listed(sorted(report["unexpected_keys"]))}. '
            'Check that config.json and the weights belong to each other.'
        )
    unused = sorted(set(report['unexpected_keys']) - {f'{SCORE_HEAD}.weight'})
    if unused:
        logger.warning('%s holds weights that %s has no parameter for: %s', source, kind.__name__, _listed(unused))


def _listed(names: list[str]) -> str:
    if not names:
        return 'none'
    rest = len(names) - MOST_KEYS_LISTED
    return ', '.join(names[:MOST_KEYS_LISTED]) + (f' and {rest} more' if rest > 0 else '')


def _keep_used_renames(model: PreTrainedModel) -> None:
    """Forgets the renames that this checkpoint did not need, or saving would apply them backwards.

    transformers does so itself except under ZeRO-3, where it keeps all and later saves names that never existed.
    """
    renames = model.__dict__.get('_weight_conversions')
    if renames is not None:
        model._weight_conversions = [rename for rename in renames if rename.was_used()]


def _freeze_constants(model: PreTrainedModel) -> None:
    """Freezes what the architecture's constructor freezes, and codecs; a plain load makes them trainable again."""
    constant = {name for name, parameter in skeleton_of(model).named_parameters() if not parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in constant:
            parameter.requires_grad_(False)
