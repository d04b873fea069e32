"""From the name of a checkpoint to a model, its tokenizer and its processor, tuned as the settings ask."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.logging import get_logger
from align_anything.core.registry import nearest
from align_anything.core.types import MEDIA_KINDS
from align_anything.models.action_space import act_in, read_action_space
from align_anything.models.adapter import TARGETS_ADVICE, Adapter, check_continuation, find_adapter, load_weights
from align_anything.models.any_model import AnyModel, AnyModelForScore
from align_anything.models.architecture import plain_attention, transformers_class
from align_anything.models.checkpoint import check_checkpoint, is_multimodal, read_config
from align_anything.models.declared_codes import declare, declared_beside
from align_anything.models.families import own_head, own_space, spec_for
from align_anything.models.lora import apply_lora
from align_anything.models.quantization import is_quantised, keep_trainable, quantization_config
from align_anything.models.score import SCORE_HEAD
from align_anything.models.trainable import Components, freeze_components, freeze_output_embedding, require_trainable

if TYPE_CHECKING:
    from align_anything.configs.schema import BnbCfgs, LoraCfgs
    from align_anything.models.family import FamilySpec

logger = get_logger(__name__)
DEFAULT_MAX_LENGTH = 2048


def load_pretrained_models(
    model_name_or_path: str | Path,
    model_max_length: int = DEFAULT_MAX_LENGTH,
    padding_side: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = 'sdpa',
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    freeze_vision_tower: bool = False,
    freeze_audio_tower: bool = False,
    freeze_mm_proj: bool = False,
    freeze_generation: bool = False,
    freeze_language_model: bool = False,
    unfreeze_patterns: Sequence[str] = (),
    lora_cfgs: LoraCfgs | None = None,
    bnb_cfgs: BnbCfgs | None = None,
    is_reward_model: bool = False,
    modality: str | Sequence[str] | None = None,
) -> tuple[nn.Module, Any, Any]:
    """Returns `(model, tokenizer, processor)`; the processor is None for text families.

    `padding_side` None keeps the checkpoint's, and the tokenizer's `model_max_length` is the one given, as far as the
    model has positions. `modality` names what the model must read: kinds such as `image`, or a modality pair. The model
    is frozen first and gets adapters second; the adapter in a folder is trained on. Raises ModelError for whatever
    cannot be loaded or cannot be done, when it does not read `modality`, and when nothing would train, and
    SettingsError when the settings are not those of the adapter.
    """
    adapter = find_adapter(model_name_or_path)
    check_continuation(adapter, lora_cfgs)
    spec = load_spec(
        model_name_or_path,
        model_max_length=model_max_length,
        padding_side=padding_side,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        processor_kwargs=processor_kwargs,
    )
    _check_modality(modality, spec.reads, model_name_or_path)
    spec.tokenizer.model_max_length = spec.max_length
    model = load_model(
        model_name_or_path,
        spec.components,
        dtype=dtype,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        bnb_cfgs=bnb_cfgs,
        is_reward_model=is_reward_model,
    )
    model = tune_model(
        model,
        spec.components,
        freeze_vision_tower=freeze_vision_tower,
        freeze_audio_tower=freeze_audio_tower,
        freeze_mm_proj=freeze_mm_proj,
        freeze_generation=freeze_generation,
        freeze_language_model=freeze_language_model,
        unfreeze_patterns=unfreeze_patterns,
        lora_cfgs=lora_cfgs,
        adapter=adapter,
        dtype=dtype,
    )
    return model, spec.tokenizer, spec.processor


def _check_modality(modality: str | Sequence[str] | None, reads: Set[str], source: str | Path) -> None:
    names = [modality] if isinstance(modality, str) else modality or ()
    asked = {word for name in names for word in name.partition('_to_')[0].split('_')}
    unknown, missing = sorted(asked - {'text', 'any', *MEDIA_KINDS}), sorted(asked & {*MEDIA_KINDS} - reads)
    if unknown:
        raise ModelError(f"modality: there is no '{unknown[0]}'. There are: text, {', '.join(sorted(MEDIA_KINDS))}.")
    if missing:
        raise ModelError(f'modality: {source} reads no {" and no ".join(missing)}.')


def load_spec(
    model_name_or_path: str | Path,
    *,
    model_max_length: int | None = DEFAULT_MAX_LENGTH,
    padding_side: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    media_codes: Mapping[str, Mapping[str, Any]] | None = None,
    base: str | None = None,
) -> FamilySpec:
    """Returns the FamilySpec of a checkpoint, reading its tokenizer and processor but no weights.

    For an adapter folder it is that of the model under it, with the processor and the template of the adapter.

    Args:
        model_max_length: longest sample in tokens; more than the model has positions is lowered, with a warning. None
            is what the checkpoint says itself, by its positions and its tokenizer's `model_max_length`.
        padding_side: of the tokenizer; None keeps the checkpoint's.
        chat_template: a template file or the text of a template, to use instead of the checkpoint's.
        processor_kwargs: given to `AutoProcessor.from_pretrained`, such as `min_pixels`.
        media_codes: how media stand in the vocabulary as codes, in place of what the configuration declares; folders
            of codecs start from the working directory.
        base: of an adapter folder, the model under it; None for the one that the adapter records.

    Raises ModelError when the checkpoint is incomplete or its tokenizer, processor or template cannot be used.
    """
    adapter = find_adapter(model_name_or_path)
    source = model_name_or_path if adapter is None else base or adapter.require_base()
    check_checkpoint(source, trust_remote_code)
    config = read_config(source, trust_remote_code)
    media_codes = media_codes or ({} if adapter is None else declared_beside(adapter.folder))
    if media_codes:
        declare(config, media_codes)
    beside = adapter is not None and adapter.holds_processor(is_multimodal(config))
    tokenizer, processor = _load_processor(
        model_name_or_path if beside else source, config, trust_remote_code, processor_kwargs or {}
    )
    if padding_side is not None:
        tokenizer.padding_side = padding_side
    if chat_template is not None:
        (processor or tokenizer).chat_template = _read_template(chat_template)
    try:
        spec = spec_for(
            config,
            tokenizer,
            processor,
            max_length=_own_length(config, tokenizer)
            if model_max_length is None
            else _within_positions(model_max_length, config),
            generation_config=_load_generation_config(source),
        )
    except SampleError as error:
        raise ModelError(f'the processor of {model_name_or_path} cannot encode a plain medium: {error}') from error
    return _acting(spec, model_name_or_path, source)


def spec_of(tokenizer: Any, processor: Any = None, trust_remote_code: bool = False) -> FamilySpec:
    """Returns the FamilySpec of a tokenizer and a processor that are loaded already, with the template they have.

    Its checkpoint is the tokenizer's `name_or_path`, its longest sample the tokenizer's `model_max_length`, as far as
    the model has positions. Raises ModelError where there is no such checkpoint, and as `load_spec` does.
    """
    name = tokenizer.name_or_path
    if not name:
        raise ModelError(
            'this tokenizer does not say which checkpoint it belongs to (name_or_path): load it with '
            'load_pretrained_models, or with from_pretrained.'
        )
    adapter = find_adapter(name)
    source = name if adapter is None else adapter.require_base()
    config = read_config(source, trust_remote_code)
    spec = spec_for(
        config,
        tokenizer,
        processor,
        max_length=_own_length(config, tokenizer),
        generation_config=_load_generation_config(source),
    )
    return _acting(spec, name, source)


def _acting(spec: FamilySpec, source: str | Path, base: str | Path) -> FamilySpec:
    """The spec, which acts in the space of its checkpoint or adapter, if that has one."""
    space = read_action_space(source, base) or own_space(spec.config)
    if space is not None:
        act_in(spec, space)
    return spec


def load_model(
    model_name_or_path: str | Path,
    components: Components,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = 'sdpa',
    trust_remote_code: bool = False,
    bnb_cfgs: BnbCfgs | None = None,
    is_reward_model: bool = False,
    on_meta: bool = False,
) -> PreTrainedModel:
    """Loads the weights in `dtype`, quantised when `bnb_cfgs` says so. `components` are those of the FamilySpec.

    `attn_implementation` goes to the language model; towers keep what transformers chooses for them. Where sdpa would
    drop what the configuration asks for, eager serves, and a warning says so. Partitions
    while loading when a `HfDeepSpeedConfig` of ZeRO-3 is alive. An adapter folder gives the model under the adapter.
    `on_meta` builds the very model, of the same names, shapes and types, without its weights. Raises ModelError.
    """
    adapter = find_adapter(model_name_or_path)
    if adapter is not None:
        model_name_or_path = adapter.require_base()
    options: dict[str, Any] = {'dtype': dtype, 'trust_remote_code': trust_remote_code}
    config = read_config(model_name_or_path, trust_remote_code)
    if not is_reward_model:
        require_writing(config.model_type, model_name_or_path)
    if attn_implementation == 'sdpa':
        attn_implementation = plain_attention(transformers_class(config, trust_remote_code), config)
        if attn_implementation != 'sdpa':
            logger.warning('sdpa lacks what the attention of %s needs; padded rows use eager.', config.model_type)
    options['attn_implementation'] = _for_text_only(config, attn_implementation)
    quantise = None if bnb_cfgs is None else quantization_config(bnb_cfgs, dtype, components)
    if quantise is not None:
        options['quantization_config'] = quantise
    if on_meta:
        options['device_map'] = {'': 'meta'}
    model = (AnyModelForScore if is_reward_model else AnyModel).from_pretrained(model_name_or_path, **options)
    keep_trainable(model)
    return model


def require_writing(model_type: str, source: str | Path) -> None:
    """Raises ModelError for a model that only scores."""
    if own_head(model_type) is not None:
        raise ModelError(
            f"{source} (model_type '{model_type}') scores answers and writes none: train it with rm, ask it with "
            'rm_score, or name it as reward_model_name_or_path.'
        )


def tune_model(
    model: PreTrainedModel,
    components: Components,
    *,
    freeze_vision_tower: bool = False,
    freeze_audio_tower: bool = False,
    freeze_mm_proj: bool = False,
    freeze_generation: bool = False,
    freeze_language_model: bool = False,
    unfreeze_patterns: Sequence[str] = (),
    lora_cfgs: LoraCfgs | None = None,
    adapter: Adapter | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Freezes components, unfreezes by pattern, then adds adapters. Returns the model, wrapped by peft under LoRA.

    With `adapter`, a saved one, its weights are where training starts. A score head always trains, and the output
    embedding beside it, which nothing reads, does not. Raises SettingsError when the settings are not
    those it was trained with, and ModelError when it does not fit the model, when a pattern or target matches nothing,
    when quantised weights have no adapters, and when nothing is left to train.
    """
    check_continuation(adapter, lora_cfgs)
    freeze_components(
        model,
        components,
        vision_tower=freeze_vision_tower,
        audio_tower=freeze_audio_tower,
        mm_proj=freeze_mm_proj,
        generation=freeze_generation,
        language_model=freeze_language_model,
        unfreeze_patterns=unfreeze_patterns,
    )
    heads = [name for name, _ in model.named_children() if name == SCORE_HEAD]
    # A family's own head has no weights of its own.
    learnt = [name for name in heads if any(True for _ in model.get_submodule(name).parameters())]
    if heads:
        freeze_output_embedding(model)
    tuned: nn.Module = model
    if lora_cfgs is not None and lora_cfgs.use_lora:
        tuned = apply_lora(
            model, lora_cfgs, components, unfreeze_patterns=unfreeze_patterns, also_save=learnt, dtype=dtype
        )
        if adapter is not None:
            load_weights(tuned, adapter, TARGETS_ADVICE)
    elif is_quantised(model):
        raise ModelError('bnb_cfgs.use_bnb without lora_cfgs.use_lora: quantised weights cannot be trained themselves.')
    require_trainable(tuned)
    return tuned


def set_text_attention(model: PreTrainedModel, name: str) -> None:
    """Makes the language model use the attention called `name`; towers keep theirs.

    Raises ModelError when the architecture does not take that attention.
    """
    try:
        model.set_attn_implementation(_for_text_only(model.config, name))
    except (ValueError, ImportError) as error:
        raise ModelError(f'{type(model).__name__} cannot use the attention {name!r}: {error}') from error
    in_force = text_attention(model)
    if in_force != name:
        raise ModelError(f'{type(model).__name__} keeps the attention {in_force!r}; {name!r} was asked for.')


def text_attention(model: PreTrainedModel) -> str:
    """Returns the name of the attention that the language model uses."""
    return model.config.get_text_config(decoder=True)._attn_implementation


def _for_text_only(config: PreTrainedConfig, name: str) -> str | dict[str, str]:
    text = config.get_text_config(decoder=True)
    if text is config:
        return name
    # Configurations of older own code do not say which of their parts are configurations.
    key = next((key for key in config.sub_configs if vars(config).get(key) is text), None)
    return name if key is None else {key: name}


def _load_processor(
    source: str | Path, config: PreTrainedConfig, trust_remote_code: bool, options: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Returns `(tokenizer, processor)`, the processor None for text families."""
    try:
        if not is_multimodal(config):
            if options:
                raise ModelError(f'model_cfgs.processor_kwargs {dict(options)}: {source} is a text model.')
            return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code), None
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f'the tokenizer or processor of {source} does not load: {error}') from error
    known = _processor_options(processor)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ModelError(
            f"model_cfgs.processor_kwargs: {type(processor).__name__} has no '{unknown[0]}'."
            f'{nearest(unknown[0], sorted(known))} It has: {", ".join(sorted(known))}.'
        )
    return processor.tokenizer, processor


def _processor_options(processor: Any) -> set[str]:
    """The arguments that a processor and its components know; transformers drops others without a word."""
    parts = [vars(processor)[name] for name in processor.get_attributes() if name != 'tokenizer']
    known: set[str] = set()
    for kind in (base for owner in (processor, *parts) for base in type(owner).__mro__ if base is not object):
        known |= set(inspect.signature(kind.__init__).parameters) | set(vars(kind).get('__annotations__', {}))
        if 'valid_kwargs' in vars(kind):
            # The names alone: what some annotations say is imported for type checkers only.
            known |= set(vars(kind)['valid_kwargs'].__annotations__)
    return {name for name in known if not name.startswith('_')} - {'self', 'args', 'kwargs'}


def _load_generation_config(source: str | Path) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        # Not every checkpoint has one.
        return None


def _read_template(template: str) -> str:
    if '{' in template:
        return template
    file = Path(template)
    if not file.is_file():
        raise ModelError(f'model_cfgs.chat_template: {template!r} is neither a file nor the text of a template.')
    return file.read_text(encoding='utf-8')


def positions_of(config: PreTrainedConfig) -> int | None:
    """Returns how many positions the language model has; None where its configuration bounds none."""
    return config.get_text_config(decoder=True).to_dict().get('max_position_embeddings')


def _own_length(config: PreTrainedConfig, tokenizer: Any) -> int:
    # A tokenizer that knows no limit says a number beyond all bounds.
    return int(min(positions_of(config) or sys.maxsize, tokenizer.model_max_length))


def _within_positions(length: int, config: PreTrainedConfig) -> int:
    limit = positions_of(config)
    if limit is None or length <= limit:
        return length
    logger.warning('model_max_length %d is more than the %d positions of the model; using %d.', length, limit, limit)
    return limit
