"""What the configurations of the parts tell of a composed model, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from align_anything.configs.compose import BY_FRAME, DEFAULT_TOKENS, READ_BY, ComposeCfgs, MediaCfgs
from align_anything.core.errors import ModelError
from align_anything.core.files import read_json
from align_anything.models.checkpoint import is_multimodal, read_config
from align_anything.models.codecs.pictures import pixels_of
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
ANY_SHAPE = (
    'It reads images of any shape (NaFlex), and those of composed models are squares: name a SigLIP 2 of one '
    'resolution, such as google/siglip2-base-patch16-224.'
)
SCALING = ('dinov2', 'dinov2_with_registers')
"""Encoders that scale what they know of places to images of other sizes; published ones are shown smaller images."""
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
        name: of the checkpoint.
        config: the encoder's.
        module: the encoder's in the model.
        pictures: the image processor, of encoders of images and videos.
        side: height and width in pixels of what it makes.
    """

    name: str
    config: PreTrainedConfig
    module: str = ''
    pictures: Any = None
    side: int = 0


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
            **ids,
        )

    def llava_config(self) -> LlavaConfig:
        """Returns the configuration of the same model as a LLaVA."""
        (part,) = self.parts.values()
        return LlavaConfig(
            vision_config=part.sources[0].config,
            text_config=self.text_config,
            image_token_index=self.token_id('image'),
            image_seq_length=(part.sources[0].config.image_size // part.sources[0].config.patch_size) ** 2,
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
                part.sources[0].pictures,
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
                made = [AutoFeatureExtractor.from_pretrained(source.name) for source in part.sources]
            else:
                named = ('image_processor', 'image_processor_2') if kind == 'image' else ('video_processor',)
                made = [source.pictures for source in part.sources]
            if kind == 'video' and not part.entry['precomputed_dim']:
                rules[kind]['frames'] = 'each' if part.entry['by_frame'] else part.sources[0].config.num_frames
            components |= dict(zip(named, made, strict=False))
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
    is_llava = _is_llava(parts) and _ties_as_llava(text_config)
    return Plan(cfgs.language_model, text_config, tokenizer, parts, cfgs.seed, is_llava, new_ids)


def _text_config(name: str) -> PreTrainedConfig:
    if Path(name).is_dir() and 'auto_map' in read_json(Path(name) / 'config.json'):
        raise ModelError(
            f'language_model: {name} brings code of its own, and composed models are made of classes of transformers.'
        )
    config = read_config(name)
    if is_multimodal(config):
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


def _ties_as_llava(text_config: PreTrainedConfig) -> bool:
    """Whether a LLaVA finds the embedding that its head shares a weight with: it looks for one name alone."""
    if not text_config.tie_word_embeddings:
        return True
    with torch.device('meta'):
        body = AutoModel.from_config(text_config)
    return body.get_input_embeddings() is dict(body.named_children()).get('embed_tokens')


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
    grids = [source.side // source.config.patch_size for source in sources]
    if len(set(grids)) > 1 or select == 'full':
        sides = ' and '.join(
            f'{source.name} ({grid} x {grid} patches)' for source, grid in zip(sources, grids, strict=True)
        )
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
    return Source(name, inner, module, *(() if kind == 'audio' else _pictures(kind, name, inner)))


def _pictures(kind: str, name: str, config: PreTrainedConfig) -> tuple[Any, int]:
    """The image processor of an encoder, and the side of what it makes. Raises ModelError where it does not fit."""
    side = config.image_size
    try:
        found = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f'{kind}.encoder: the image processor of {name} does not load: {error}') from error
    try:
        made = sorted({pixels_of(found, *shape) for shape in ((side, 2 * side), (2 * side, side))})
    except KeyError:  # it names one side, and the other one follows the picture
        made = []
    if config.model_type in SCALING and len(made) == 1 and made[0][0] == made[0][1] >= config.patch_size:
        side = made[0][0]
    if made != [(side, side)]:
        shapes = ' and '.join(f'{height} x {width}' for height, width in made) or 'any shape'
        raise ModelError(
            f'{kind}.encoder: {name} takes images of {side} x {side} pixels, but its image processor '
            f'(preprocessor_config.json) makes them {shapes}: let it crop, or scale, to the former.'
        )
    return found, side


def _encoder(kind: str, source: Source, cfgs: MediaCfgs) -> dict[str, Any]:
    """The entry of an encoder in the configuration, with as many layers as are used."""
    known = AutoConfig.for_model(**{**source.config.to_dict(), 'model_type': source.config.model_type}).to_dict()
    settings = {key: value for key, value in known.items() if key not in NOT_OURS}
    settings |= {key: value for key, value in STEADY.items() if key in known or key == 'vision_use_head'}
    other = kind != 'audio' and source.side != source.config.image_size
    shown = {'side': source.side} if other else {}
    layer = cfgs.feature_layer
    if 'feature_layer' not in cfgs.model_fields_set and source.config.model_type in LLAVA_ENCODERS:
        layer = LLAVA_LAYER
    if layer is None:
        return {'config': settings, 'final_norm': True, **shown}
    key = 'encoder_layers' if source.config.model_type == 'whisper' else 'num_hidden_layers'
    if source.config.model_type == 'clap_audio_model':
        raise ModelError(f'{kind}.feature_layer: the layers of {source.name} differ in size; leave it out.')
    number = settings[key] + 1 + layer if layer < 0 else layer
    if not 1 <= number <= settings[key]:
        raise ModelError(f'{kind}.feature_layer: {source.name} has layers 1 to {settings[key]}, so {layer} is none.')
    return {'config': {**settings, key: number}, 'final_norm': False, **shown}
