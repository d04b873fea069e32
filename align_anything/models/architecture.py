"""The class that a configuration stands for, and models of it without storage."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from align_anything.core.errors import ModelError
from align_anything.models.acting.known import OWN, register_acting

if TYPE_CHECKING:  # data workers read family rules, which need no models: importing these takes seconds
    from transformers import PreTrainedConfig, PreTrainedModel

CODEC_NAMES = frozenset(('vqmodel', 'codec_model'))
"""Names of modules of transformers' classes that make codes of media."""
SPEAKING = ('csm',)
"""Types of models that are trained here and that transformers files among those that make waves of text."""


SINCE_RENAMED = {'AutoModelForVision2Seq': 'AutoModelForImageTextToText'}
"""Auto classes that older checkpoints name for their own code, and what transformers calls them now."""
SCORING = ('clip',)
"""Types of models that write nothing, and are trained here to score."""


def transformers_class(config: PreTrainedConfig, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """Returns the class of transformers that holds a language-model head for `config`.

    Raises ModelError when there is none, or when it is the checkpoint's own code and that is not trusted.
    """
    mappings = _mappings(config)
    own_code = _own_code(config)
    if own_code is not None and trust_remote_code:
        return _own_class(config.to_dict()['auto_map'][own_code], config.name_or_path, own_code)
    for mapping in mappings.values():
        if type(config) in mapping:
            return mapping[type(config)]
    hint = ' It brings code of its own: set trust_remote_code if you trust it.' if own_code else ''
    raise ModelError(
        f"model_type '{config.model_type}' is neither a causal language model nor an image-text-to-text model "
        f'of this transformers version, so it cannot generate text.{hint}'
    )


def auto_class(config: PreTrainedConfig) -> str | None:
    """Returns the name of the Auto class of transformers that loads a checkpoint of `config`; None without one."""
    own = _own_code(config)
    return SINCE_RENAMED.get(own, own) or next(
        (name for name, mapping in _mappings(config).items() if type(config) in mapping), None
    )


def _mappings(config: PreTrainedConfig) -> dict[str, Any]:
    from transformers.models.auto import modeling_auto as auto

    register_acting(config.model_type)
    scoring = {'AutoModelForZeroShotImageClassification': auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING}
    speaking = {'AutoModelForTextToWaveform': auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING}
    acting = {'AutoModel': auto.MODEL_MAPPING}
    return {
        'AutoModelForImageTextToText': auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        'AutoModelForMultimodalLM': auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
        'AutoModelForCausalLM': auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        **(speaking if config.model_type in SPEAKING else {}),
        **(scoring if config.model_type in SCORING else {}),
        **(acting if config.model_type in OWN else {}),
    }


def _own_code(config: PreTrainedConfig) -> str | None:
    """The Auto class for which a checkpoint brings code of its own."""
    remote = config.to_dict().get('auto_map') or {}
    return next((name for name in (*_mappings(config), *SINCE_RENAMED, 'AutoModel') if name in remote), None)


def _own_class(reference: str, source: str, auto_class: str) -> type[PreTrainedModel]:
    """Returns the class in a checkpoint's own code, able to generate and to be saved with that code, as AutoModel's."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

    kind = get_class_from_dynamic_module(reference, source)
    kind.register_for_auto_class(SINCE_RENAMED.get(auto_class, auto_class))
    return add_generation_mixin_to_remote_model(kind)


def plain_attention(kind: type[PreTrainedModel], config: PreTrainedConfig) -> str:
    """Returns the attention that computes all that `config` asks of its language model: `sdpa`, else `eager`.

    The kernels of sdpa have no soft caps; transformers drops them without a word.
    """
    softcap = config.get_text_config(decoder=True).to_dict().get('attn_logit_softcapping')
    return 'sdpa' if kind._supports_sdpa and softcap is None else 'eager'


def skeleton(config: Any) -> torch.nn.Module:
    """Returns the model of a configuration without storage, of transformers' class or the checkpoint's own code.

    A codec of media in it is frozen: its codes stand in data, so it never trains, whatever else does.
    """
    from transformers.modeling_utils import set_zero3_state

    # A configuration class out of a checkpoint's own code exists only where that code is trusted.
    trusted = type(config).__module__.startswith('transformers_modules')
    # Submodels ask whether ZeRO-3 has to partition them; a skeleton has nothing to partition.
    with set_zero3_state(), torch.device('meta'):
        model = transformers_class(config, trust_remote_code=trusted)(config)
    for name, parameter in model.named_parameters():
        if CODEC_NAMES & {*name.split('.')}:
            parameter.requires_grad_(False)
    return model


def skeleton_of(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the architecture of `model` without storage, of its plain class and not quantised."""
    config = copy.deepcopy(model.config)
    if 'quantization_config' in vars(config):
        del config.quantization_config
    return skeleton(config)
