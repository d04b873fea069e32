"""Facts about a family read from its configuration, its processor and the shape of its model class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_anything.core.errors import ModelError
from align_anything.core.types import Audio, MediaKind, Video
from align_anything.models.architecture import CODEC_NAMES, skeleton

PROCESSOR_KINDS: dict[str, MediaKind] = {
    'image_processor': 'image',
    'video_processor': 'video',
    'feature_extractor': 'audio',
    'audio_processor': 'audio',
}
ATTENTION_LAYERS = {'full_attention', 'sliding_attention'}
# Names of modules in transformers' multimodal classes. A projector often sits inside the tower: it is looked for first.
PROJECTOR_NAMES = frozenset(
    'multi_modal_projector connector merger merger_list deepstack_merger_list aligner abstractor resampler '
    'qformer query_tokens language_projection vision_projection image_newline embed_vision embed_audio perceiver '
    'modality_projection'.split()
)
TOWER_NAMES = frozenset(
    'vision_tower video_tower visual vision_model vision_encoder image_encoder vision_backbone'.split()
)
NESTED_TOWERS = frozenset(('clip_vision_model', 'siglip_vision_model'))
AUDIO_TOWER_NAMES = frozenset('audio_tower audio_encoder audio_model'.split())
MEDIA_CODEC = 'media_codec'
"""The component that makes codes of media: it comes with the model, and never trains."""
GENERATION_NAMES = frozenset(
    'generation_embeddings generation_aligner generation_head depth_decoder embed_audio_tokens'.split()
)
"""What a second vocabulary, of codes of media, is embedded and scored by."""


def media_kinds(processor: Any) -> frozenset[MediaKind]:
    """Returns the kinds of media that a processor has a component for."""
    return frozenset(kind for name, kind in PROCESSOR_KINDS.items() if name in processor.get_attributes())


def media_token_ids(config: Any) -> frozenset[int]:
    """Returns the placeholder ids at which the model puts media features."""
    known = config.to_dict()
    names = [f'{kind}_token_{ending}' for kind in ('image', 'video', 'audio') for ending in ('id', 'index')]
    return frozenset(known[name] for name in names if known.get(name) is not None)


def declared_token(processor: Any, kind: MediaKind) -> str | None:
    """Returns the processor's placeholder text for a kind of media, None when it declares none."""
    token = vars(processor).get(f'{kind}_token')
    return None if token is None else str(token)


def audio_rate(processor: Any) -> int | None:
    """Returns the samples per second that a processor wants audio clips to have, None where it hears none."""
    return int(_feature_extractor(processor).sampling_rate) if 'audio' in media_kinds(processor) else None


def audio_window(processor: Any) -> int | None:
    """Returns the samples of an audio clip past which the feature extractor silently drops the rest, None for none."""
    extractor = _feature_extractor(processor)
    if 'nb_max_samples' in vars(extractor):
        return vars(extractor)['nb_max_samples']  # CLAP's, which keeps a piece at random
    parameters = inspect.signature(type(extractor).__call__).parameters
    defaults = processor.valid_processor_kwargs._defaults.get('audio_kwargs', {})
    if 'truncation' not in parameters or not defaults.get('truncation', parameters['truncation'].default):
        return None
    longest = defaults.get('max_length', parameters['max_length'].default) if 'max_length' in parameters else None
    return longest or vars(extractor).get('n_samples')


def _feature_extractor(processor: Any) -> Any:
    parts = [name for name, kind in PROCESSOR_KINDS.items() if kind == 'audio' and name in processor.get_attributes()]
    return vars(processor)[parts[0]]


def smallest(kind: MediaKind, rate: int | None = None) -> Any:
    """Returns a small grey or silent medium that every processor takes; `rate` is that of an audio clip."""
    if kind == 'image':
        from PIL import Image

        return Image.new('RGB', (32, 32), (128, 128, 128))
    if kind == 'video':
        # Two frames are what the towers of most families take in at once.
        return Video(np.full((2, 32, 32, 3), 128, np.uint8), np.array([0.0, 0.5]), 2.0)
    return Audio(np.zeros(rate // 4, np.float32), rate)


def logit_transform(text_config: Any) -> tuple[float | None, float]:
    """Returns the soft-cap and the factor that the model applies to its logits, from its text configuration."""
    known = text_config.to_dict()
    softcap = next(
        (float(known[name]) for name in ('final_logit_softcapping', 'output_logit_soft_cap') if known.get(name)), None
    )
    scale = float(known.get('logit_scale') or 1.0) * float(known.get('lm_head_multiplier') or 1.0)
    return softcap, scale / float(known.get('logits_scaling') or 1.0)


def layouts(config: Any) -> tuple[str, ...]:
    """Returns the layouts that the model class can compute.

    Rows that hold several sequences need attention through transformers' interface, positions as an argument, and no
    state that runs along the row.
    """
    model = skeleton(config)
    text = config.get_text_config()
    known = text.to_dict()
    body = model.base_model
    fits = (
        type(model)._supports_attention_backend
        and not type(model)._is_stateful
        and 'position_ids' in inspect.signature(body.forward).parameters
        and set(known.get('layer_types') or ATTENTION_LAYERS) <= ATTENTION_LAYERS
    )
    return ('padded', 'packed', 'shared_prefix') if fits else ('padded',)


def components(config: Any) -> dict[str, list[str]]:
    """Returns prefixes of the parameter names of each component, found by the names of the model's modules."""
    # A tied head has no name of its own among the distinct parameters, but adapters and saved weights know it by one.
    return components_of_names([name for name, _ in skeleton(config).named_parameters(remove_duplicate=False)])


def nests_tower(config: Any) -> bool:
    """Whether the vision tower is an encoder of CLIP or SigLIP, which checkpoints of the hub nest once more."""
    return (config.to_dict().get('vision_config') or {}).get('model_type') in NESTED_TOWERS


def hub_name(name: str, nests: bool) -> str:
    """Returns the name that a weight has in checkpoints of the hub, given that of a checkpoint.

    Newer versions of transformers leave out the module `vision_model` in which such encoders lie there, and write
    `model` twice into the names of a model that was made from a configuration.
    """
    if nests:
        name = re.sub(r'^((?:model\.)?vision_tower\.)(?!vision_model\.)', r'\1vision_model.', name)
    return re.sub(r'^language_model\.model\.model\.', 'language_model.model.', name)


def components_of_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns, for parameter names of a transformers model, the prefixes of each component of it."""
    found: dict[str, dict[str, None]] = {
        component: {}
        for component in ('vision_tower', 'audio_tower', 'mm_proj', 'generation', 'language_model', MEDIA_CODEC)
    }
    for name in names:
        pieces = name.split('.')
        component, end = _component_and_depth(pieces)
        found[component]['.'.join(pieces[:end])] = None
    return {component: list(prefixes) for component, prefixes in found.items() if prefixes}


def _component_and_depth(pieces: list[str]) -> tuple[str, int]:
    for component, names in ((MEDIA_CODEC, CODEC_NAMES), ('generation', GENERATION_NAMES)):
        depth = next((index for index, piece in enumerate(pieces) if piece in names), None)
        if depth is not None:
            return component, depth + 1
    tower = next((index for index, piece in enumerate(pieces) if piece in TOWER_NAMES | AUDIO_TOWER_NAMES), None)
    projector = next((index for index, piece in enumerate(pieces) if piece in PROJECTOR_NAMES), None)
    # Inside a tower only what joins it to the language model is a projector.
    if projector is not None and (tower is None or projector <= tower + 1):
        return 'mm_proj', projector + 1
    if tower is not None:
        return 'vision_tower' if pieces[tower] in TOWER_NAMES else 'audio_tower', tower + 1
    return 'language_model', min(2, len(pieces) - 1)


def component_of(prefixes: Mapping[str, Sequence[str]], name: str) -> str:
    """Returns the component whose prefix matches most of `name`. Raises ModelError when none does."""
    matches = [
        (len(prefix), component)
        for component, names in prefixes.items()
        for prefix in names
        if name == prefix or name.startswith(f'{prefix}.') or not prefix
    ]
    if not matches:
        raise ModelError(f"parameter '{name}' belongs to no component of the model; known prefixes: {dict(prefixes)}")
    return max(matches)[1]
