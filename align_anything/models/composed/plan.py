"""What the configurations of the parts tell of a composed model, before any weight is read."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from align_anything.configs.compose import BY_FRAME, DEFAULT_TOKENS, READ_BY, ComposeCfgs, MediaCfgs
from align_anything.core.errors import ModelError
from align_anything.core.files import read_json
from align_anything.models.architecture import skeleton
from align_anything.models.checkpoint import is_multimodal, read_config
from align_anything.models.composed.configuration_composed import (
    AUDIO_ENCODERS,
    PICTURE_ENCODERS,
    WAVE_ENCODERS,
    ComposedConfig,
    counting_rule,
    leading_tokens,
)
from align_anything.models.composed.processing_composed import ComposedProcessor
from align_anything.models.composed.template import with_media
from align_anything.models.families import own_head
from align_anything.models.structure import logit_transform

WITHIN: Mapping[str, tuple[str | None, str]] = {
    'clip': ('vision_config', 'vision_model'),
    'siglip': ('vision_config', 'vision_model'),
    'clap': ('audio_config', 'audio_model'),
    'whisper': (None, 'encoder'),
}
"""Where checkpoints of more than an encoder have its configuration, and its module."""
KNOWN: Mapping[str, tuple[str, ...]] = {
    'image': PICTURE_ENCODERS,
    'video': ('videomae', *PICTURE_ENCODERS),
    'audio': AUDIO_ENCODERS,
}
LLAVA_ENCODERS = ('clip_vision_model', 'siglip_vision_model')
LLAVA_LAYER = -2
RESIZED = ('dinov2', 'dinov2_with_registers')
"""Encoders that fit their positions to the size of an image."""
PROBED = ((96, 64), (64, 160))
"""Sizes in pixels of pictures that a processor is tried on."""
ANY_SHAPE = (
    'It reads images of any shape (NaFlex), and those of composed models are squares: name a SigLIP 2 of one '
    'resolution, such as google/siglip2-base-patch16-224.'
)
ROWS_MULTIPLE = 64
NOT_OURS = (
    *('architectures', 'dtype', 'transformers_version', '_name_or_path', 'torch_dtype', 'auto_map'),
    # Of backbones: they name every layer, and some are left out.
    *('out_features', 'out_indices', '_out_features', '_out_indices', 'stage_names'),
)
# A layer that is dropped by chance has no gradient on one rank alone, and masks would hide what is asked about.
STEADY: Mapping[str, Any] = {
    'layerdrop': 0.0,
    'encoder_layerdrop': 0.0,
    'apply_spec_augment': False,
    'mask_time_prob': 0.0,
    'mask_feature_prob': 0.0,
    'use_mask_token': False,
    'vision_use_head': False,
}


@dataclass(frozen=True)
class Source:
    """A checkpoint that an encoder comes from.

    Attributes:
        name: its folder or hub name.
        config: the encoder's configuration.
        module: the encoder in the model of the checkpoint.
        processor: what prepares media for it.
        grid: patches in height and width of the images that the processor makes; None for audio.
    """

    name: str
    config: PreTrainedConfig
    module: str
    processor: Any
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class Part:
    """What reads one kind of media: its settings, where its encoders come from, and its entry of the configuration."""

    cfgs: MediaCfgs
    sources: tuple[Source, ...]
    entry: dict[str, Any]


@dataclass
class Plan:
    """A composed model that can be made."""

    language_model: str
    text_config: PreTrainedConfig
    tokenizer: Any
    parts: dict[str, Part]
    seed: int
    head_bias: bool
    is_llava: bool
    new_ids: list[int] = field(default_factory=list)

    def with_new_rows(self, weight: Tensor) -> Tensor:
        """Returns rows of an embedding or a head, with new ones for new tokens: the mean of the others."""
        known = [row for row in range(len(weight)) if row not in set(self.new_ids)]
        mean = weight[known].float().mean(0).to(weight.dtype)
        missing = self.text_config.vocab_size - len(weight)
        longer = torch.cat([weight, mean.expand(missing, *mean.shape)]) if missing > 0 else weight.clone()
        longer[self.new_ids] = mean
        return longer

    def config(self) -> ComposedConfig:
        """Returns the configuration of the composed model."""
        ids = {f'{kind}_token_id': self.token_id(kind) for kind in self.parts}
        return ComposedConfig(
            text_config=self.text_config,
            media={kind: part.entry for kind, part in self.parts.items()},
            tie_word_embeddings=bool(self.text_config.tie_word_embeddings),
            head_bias=self.head_bias,
            **ids,
        )

    def llava_config(self) -> LlavaConfig:
        """Returns the configuration of the same model as a LLaVA."""
        (part,) = self.parts.values()
        return LlavaConfig(
            vision_config=part.sources[0].config,
            text_config=self.text_config,
            image_token_index=self.token_id('image'),
            image_seq_length=math.prod(part.sources[0].grid),
            vision_feature_layer=LLAVA_LAYER if part.cfgs.feature_layer is None else part.cfgs.feature_layer,
            vision_feature_select_strategy=self._strategy(part),
            tie_word_embeddings=bool(self.text_config.tie_word_embeddings),
        )

    def processor(self, config: PreTrainedConfig, with_code: bool) -> Any:
        """Returns the processor of the composed model."""
        template = with_media(self.tokenizer, {kind: self._written(kind) for kind in self.parts})
        if self.is_llava:
            (part,) = self.parts.values()
            return LlavaProcessor(
                part.sources[0].processor,
                self.tokenizer,
                patch_size=part.sources[0].config.patch_size,
                vision_feature_select_strategy=self._strategy(part),
                num_additional_image_tokens=leading_tokens(part.sources[0].config),
                image_token=placeholder('image'),
                chat_template=template,
            )
        components, rules = {'tokenizer': self.tokenizer}, {}
        for kind, part in self.parts.items():
            rules[kind] = {**counting_rule(config, kind), 'token': placeholder(kind)}
            rules[kind] |= {'vectors': part.entry['precomputed_dim']} if part.entry['precomputed_dim'] else {}
            if kind == 'audio':
                named = ('feature_extractor', 'feature_extractor_2')
            else:
                named = ('image_processor', 'image_processor_2') if kind == 'image' else ('video_processor',)
            if kind == 'video' and not part.entry['precomputed_dim']:
                rules[kind]['frames'] = 'each' if part.entry['by_frame'] else part.sources[0].config.num_frames
            components |= dict(zip(named, (source.processor for source in part.sources), strict=False))
        rates = {components[name].sampling_rate for name in components if 'extractor' in name}
        if len(rates) > 1:
            raise ModelError(f'audio: the encoders take {sorted(rates)} samples a second; take two of one rate.')
        return ComposedProcessor(**components, rules=rules, with_code=with_code, chat_template=template)

    def token_id(self, kind: str) -> int:
        """Returns the id of the placeholder of a kind."""
        return self.tokenizer.convert_tokens_to_ids(placeholder(kind))

    def _written(self, kind: str) -> str:
        cfgs = self.parts[kind].cfgs
        return (cfgs.start_token or '') + placeholder(kind) + (cfgs.end_token or '')

    def _strategy(self, part: Part) -> str:
        takes_all = part.cfgs.select == 'full' or not leading_tokens(part.sources[0].config)
        return 'full' if takes_all else 'default'


def placeholder(kind: str) -> str:
    """Returns the token that stands for a feature of a medium."""
    return f'<{kind}>'


def plan(cfgs: ComposeCfgs) -> Plan:
    """Reads the configurations and the tokenizer of the parts. Raises ModelError for what cannot be composed."""
    text_config = _text_config(cfgs.language_model)
    language_model = skeleton(text_config)
    _check_language_model(language_model, cfgs.language_model)
    # A composed model refers to none of its parts.
    text_config.name_or_path = ''
    parts = {kind: _part(kind, part, cfgs) for kind, part in cfgs.media.items()}
    size = text_config.hidden_size
    for kind, part in parts.items():
        heads = part.entry['projector'].get('num_heads')
        if heads is not None and size % heads:
            raise ModelError(f'{kind}.num_heads: {heads} heads do not divide {size}, the size of the language model.')
    try:
        tokenizer = AutoTokenizer.from_pretrained(cfgs.language_model)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f'the tokenizer of {cfgs.language_model} does not load: {error}') from error
    known = tokenizer.get_vocab()
    wanted = [
        token
        for kind, part in cfgs.media.items()
        for token in (placeholder(kind), part.start_token, part.end_token)
        if token and token not in known
    ]
    tokenizer.add_tokens(list(dict.fromkeys(wanted)), special_tokens=True)
    new_ids = sorted(tokenizer.convert_tokens_to_ids(token) for token in set(wanted))
    rows = max([text_config.vocab_size, *(row + 1 for row in new_ids)])
    if rows > text_config.vocab_size:
        text_config.vocab_size = -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE
    head_bias = language_model.get_output_embeddings().bias is not None
    is_llava = _is_llava(parts) and _ends_as_llava(language_model)
    return Plan(cfgs.language_model, text_config, tokenizer, parts, cfgs.seed, head_bias, is_llava, new_ids)


def _text_config(name: str) -> PreTrainedConfig:
    if Path(name).is_dir() and 'auto_map' in read_json(Path(name) / 'config.json'):
        raise ModelError(
            f'language_model: {name} brings code of its own, and composed models are made of classes of transformers.'
        )
    config = read_config(name)
    if is_multimodal(config) and own_head(config.model_type) is None:
        raise ModelError(
            f"language_model: {name} is a '{config.model_type}', which reads media already: train it as it is, or name "
            'a language model that reads text alone.'
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"language_model: {name} is a '{config.model_type}', which writes no text.")
    return config


def _is_llava(parts: Mapping[str, Part]) -> bool:
    if set(parts) != {'image'}:
        return False
    part = parts['image']
    plain = (part.cfgs.num_layers, part.cfgs.hidden_size, part.cfgs.dropout, part.cfgs.stack) == (2, None, 0.0, None)
    return (
        plain
        and [source.config.model_type in LLAVA_ENCODERS for source in part.sources] == [True]
        and part.entry['projector']['type'] == 'mlp'
        and part.entry['select'] in ('patch', 'full')
        and part.entry['encoders'][0]['final_norm'] is False
    )


def _ends_as_llava(language_model: PreTrainedModel) -> bool:
    """Whether the head of a LLaVA computes what that of a language model does.

    It has no bias, no cap and no scale, and looks for the embedding that it shares a weight with by one name alone.
    """
    config, body, head = language_model.config, language_model.base_model, language_model.get_output_embeddings()
    shared = body.get_input_embeddings() is dict(body.named_children()).get('embed_tokens')
    return head.bias is None and logit_transform(config) == (None, 1.0) and (shared or not config.tie_word_embeddings)


def _check_language_model(model: PreTrainedModel, name: str) -> None:
    """Raises ModelError for a language model whose body or head a composed model would not call as it is meant to be.

    They keep keys and values of what was read, and have one linear layer as their head.
    """
    body, head = model.base_model, model.get_output_embeddings()
    if 'past_key_values' not in inspect.signature(body.forward).parameters:
        raise ModelError(
            f"language_model: {name} is a '{model.config.model_type}', which keeps other things than keys and values "
            'of what it has read (past_key_values); composed models generate with these.'
        )
    used = {*body.parameters(), *(() if head is None else head.parameters())}
    others = [key for key, parameter in model.named_parameters() if parameter not in used]
    if head is None or others:
        raise ModelError(
            f"language_model: {name} is a '{model.config.model_type}', whose logits are made by more than a linear "
            f'layer ({", ".join(others[:2]) or "none"}).'
        )


def _part(kind: str, cfgs: MediaCfgs, whole: ComposeCfgs) -> Part:
    projector = cfgs.projector or whole.projector
    shared = cfgs.encoders == [BY_FRAME]
    sources = () if shared else tuple(_source(kind, name) for name in cfgs.encoders)
    by_frame = None
    if kind == 'video' and cfgs.encoders:
        by_frame = 'shared' if shared else None if sources[0].config.model_type == 'videomae' else 'own'
        if len(sources) > 1:
            raise ModelError('video.encoder: videos have one encoder, or those of images for each frame (frames).')
    settings = {name: getattr(cfgs, name) for name, types in READ_BY.items() if projector in types}
    if 'num_tokens' in settings:
        settings['num_tokens'] = settings['num_tokens'] or DEFAULT_TOKENS[projector]
    select = cfgs.select or ('pooled' if by_frame else 'patch')
    if 'stack' in settings:
        dense = sources and select in ('patch', 'full') and sources[0].config.model_type in (*WAVE_ENCODERS, 'whisper')
        settings['stack'] = settings['stack'] or (4 if dense else 1)
    entry = {
        'encoders': [_encoder(kind, source, cfgs) for source in sources],
        'select': select,
        'by_frame': by_frame,
        'precomputed_dim': cfgs.precomputed_dim,
        'projector': {'type': projector, **settings},
    }
    _check_side_by_side(kind, sources, select)
    without = [source.name for source in sources if select == 'cls' and not _has_first(source.config)]
    if without:
        raise ModelError(f'{kind}.select: {without[0]} has no token for the whole of a medium (cls); take pooled.')
    return Part(cfgs, sources, entry)


def _has_first(config: PreTrainedConfig) -> bool:
    return config.model_type in PICTURE_ENCODERS and leading_tokens(config) > 0


def _check_side_by_side(kind: str, sources: tuple[Source, ...], select: str) -> None:
    """Raises ModelError for encoders of images whose patches do not lie one on the other."""
    if kind != 'image' or len(sources) < 2 or select in ('cls', 'pooled'):
        return
    if len({source.grid for source in sources}) > 1 or select == 'full':
        sides = ' and '.join(f'{source.name} ({source.grid[0]} x {source.grid[1]} patches)' for source in sources)
        raise ModelError(
            f'image.encoder: {sides} cannot stand side by side; take encoders of one grid and select patch.'
        )


def _source(kind: str, name: str) -> Source:
    config = read_config(name)
    within, module = WITHIN.get(config.model_type, (None, ''))
    inner = config if within is None else getattr(config, within)
    if inner.model_type not in KNOWN[kind]:
        advice = f' {ANY_SHAPE}' if inner.model_type == 'siglip2_vision_model' else ''
        raise ModelError(
            f"{kind}.encoder: {name} is a '{config.model_type}', which is none of the encoders that are known for "
            f'{kind}: {", ".join(KNOWN[kind])}.{advice}'
        )
    if kind != 'audio' and not (isinstance(inner.image_size, int) and isinstance(inner.patch_size, int)):
        raise ModelError(
            f'{kind}.encoder: {name} takes images of {inner.image_size} pixels in patches of {inner.patch_size}; those '
            'of composed models are squares.'
        )
    if kind == 'audio' and getattr(inner, 'add_adapter', False):
        raise ModelError(f'{kind}.encoder: {name} has an adapter behind its layers (add_adapter), which is not known.')
    inner.name_or_path = ''
    auto = AutoFeatureExtractor if kind == 'audio' else AutoImageProcessor
    try:
        processor = auto.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f'{kind}.encoder: what prepares media for {name} does not load: {error}') from error
    return Source(name, inner, module, processor, None if kind == 'audio' else _grid(kind, name, inner, processor))


def _grid(kind: str, name: str, config: PreTrainedConfig, processor: Any) -> tuple[int, int]:
    """The patches, in height and width, of the images that a processor makes of any.

    Raises ModelError where they differ in size, or the encoder has no positions for that size.
    """
    probes = [Image.new('RGB', size) for size in PROBED]
    shapes = [np.asarray(processor([probe], return_tensors='pt')['pixel_values']).shape for probe in probes]
    sizes = [shape[-2:] for shape in shapes]
    if len(set(sizes)) > 1:
        raise ModelError(f'{kind}.encoder: the processor of {name} makes images of different sizes, not of one.')
    (height, width), side = sizes[0], config.image_size
    if config.model_type not in RESIZED and (height, width) != (side, side):
        raise ModelError(
            f'{kind}.encoder: the processor of {name} makes images of {height} x {width} pixels, and its encoder has '
            f'positions for {side} x {side}.'
        )
    grid = height // config.patch_size, width // config.patch_size
    if not all(grid):
        raise ModelError(f'{kind}.encoder: the processor of {name} makes images smaller than a patch.')
    return grid


def _encoder(kind: str, source: Source, cfgs: MediaCfgs) -> dict[str, Any]:
    """The entry of an encoder in the configuration, with as many layers as are used."""
    seen = {} if source.grid is None else {'grid': list(source.grid)}
    known = AutoConfig.for_model(**{**source.config.to_dict(), 'model_type': source.config.model_type}).to_dict()
    settings = {key: value for key, value in known.items() if key not in NOT_OURS}
    settings |= {key: value for key, value in STEADY.items() if key in known or key == 'vision_use_head'}
    layer = cfgs.feature_layer
    if 'feature_layer' not in cfgs.model_fields_set and source.config.model_type in LLAVA_ENCODERS:
        layer = LLAVA_LAYER
    if layer is None:
        return {'config': settings, 'final_norm': True, **seen}
    key = 'encoder_layers' if source.config.model_type == 'whisper' else 'num_hidden_layers'
    if source.config.model_type == 'clap_audio_model':
        raise ModelError(f'{kind}.feature_layer: the layers of {source.name} differ in size; leave it out.')
    number = settings[key] + 1 + layer if layer < 0 else layer
    if not 1 <= number <= settings[key]:
        raise ModelError(f'{kind}.feature_layer: {source.name} has layers 1 to {settings[key]}, so {layer} is none.')
    return {'config': {**settings, key: number}, 'final_norm': False, **seen}
