"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a tower of patches, multimodal rotary positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.published import qwen3
from align_anything.testing.tiny.templates import chatml, content
from align_anything.testing.tiny.tokenizers import CHATML, CHATML_STOPS, make_tokenizer

MERGE = 2
MEDIA = {
    'image': '<|vision_start|><|image_pad|><|vision_end|>',
    'video': '<|vision_start|><|video_pad|><|vision_end|>',
}
NAMED = {
    'image_token': '<|image_pad|>',
    'video_token': '<|video_pad|>',
    'vision_start_token': '<|vision_start|>',
    'vision_end_token': '<|vision_end|>',
}


def tower(options: TinyOptions, newer: bool) -> dict[str, Any]:
    """Returns the configuration of the tower since Qwen2.5-VL, or of the `newer` one since Qwen3-VL."""
    shared = {
        'depth': options.vision_layers,
        'hidden_size': options.vision_hidden,
        'out_hidden_size': options.hidden,
        'num_heads': options.vision_heads,
        'intermediate_size': 2 * options.vision_hidden,
    }
    if newer:
        return {**shared, 'patch_size': 16, 'num_position_embeddings': 64, 'deepstack_visual_indexes': [0]}
    # The last layer alone attends to the whole picture.
    return {**shared, 'patch_size': 14, 'window_size': 56, 'fullatt_block_indexes': [options.vision_layers - 1]}


def rotary(options: TinyOptions, newer: bool) -> dict[str, Any]:
    """Returns the rotary positions: sections of half a head for time, height and width."""
    width = options.head_width
    sections = [width // 2 - 2 * (3 * width // 16), 3 * width // 16, 3 * width // 16]
    interleaved = {'mrope_interleaved': True} if newer else {}
    return {'rope_type': 'default', 'rope_theta': 1e6, 'mrope_section': sections, **interleaved}


def visuals(options: TinyOptions, patch: int, videos: Any = transformers.Qwen2VLVideoProcessor) -> tuple[Any, Any]:
    """Returns the processors of pictures and of clips, for patches of the side `patch`.

    Pictures keep their shape: up to `image_size` squared pixels, at least four tokens.
    """
    unit = (patch * MERGE) ** 2
    size = {'shortest_edge': 4 * unit, 'longest_edge': max(4 * unit, options.image_size**2)}
    how: dict[str, Any] = {'patch_size': patch, 'merge_size': MERGE, 'temporal_patch_size': 2}
    longer = {'shortest_edge': 4 * unit, 'longest_edge': 64 * unit}
    return transformers.Qwen2VLImageProcessor(**how, size=size), videos(**how, size=longer)


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Qwen-VL."""
    tokenizer = make_tokenizer(options.vocab, options.corpus, **CHATML, named=NAMED)
    newer = options.family == 'qwen3_vl'
    text = options.decoder(tokenizer, rope_parameters=rotary(options, newer))
    vision, videos = tower(options, newer), transformers.Qwen2VLVideoProcessor
    if options.family == 'qwen2_vl':
        vision = {
            'depth': options.vision_layers,
            'embed_dim': options.vision_hidden,
            'hidden_size': options.hidden,
            'num_heads': options.vision_heads,
            'mlp_ratio': 2,
            'patch_size': 14,
        }
    elif newer:
        videos = transformers.Qwen3VLVideoProcessor
        text['head_dim'] = options.head_width
    else:
        vision['tokens_per_second'] = 2
    name = {'qwen2_vl': 'Qwen2VL', 'qwen2_5_vl': 'Qwen2_5_VL', 'qwen3_vl': 'Qwen3VL'}[options.family]
    images, clips = visuals(options, vision['patch_size'], videos)
    template = qwen3(thinks=False, media=MEDIA) if newer else chatml(content(MEDIA))
    processor = getattr(transformers, f'{name}Processor')(images, tokenizer, clips, chat_template=template)
    ids = {f'{kind}_id': tokenizer.convert_tokens_to_ids(token) for kind, token in NAMED.items()}
    config = getattr(transformers, f'{name}Config')(text_config=text, vision_config=vision, **ids)
    kind = getattr(transformers, f'{name}ForConditionalGeneration')
    save(options, out, kind, config, processor, CHATML_STOPS)
