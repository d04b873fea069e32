"""Tiny LLaVA-1.5, LLaVA-NeXT and LLaVA-NeXT-Video: a CLIP tower, a projector, a Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import VISUALS_FIRST
from align_anything.testing.tiny.tokenizers import LLAMA2, make_tokenizer


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny LLaVA."""
    named = {'image_token': '<image>'} | ({'video_token': '<video>'} if options.family == 'llava_next_video' else {})
    tokenizer = make_tokenizer(options.vocab, options.corpus, **LLAMA2, named=named)
    pinpoints = options.pinpoints
    sizes: dict[str, Any] = {'size': {'shortest_edge': options.image_size}, 'crop_size': options.square}
    images = transformers.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=pinpoints)
    shared: dict[str, Any] = {
        'vision_config': options.tower(model_type='clip_vision_model', projection_dim=options.vision_hidden),
        'text_config': {'model_type': 'llama', **options.decoder(tokenizer)},
        'image_token_index': tokenizer.image_token_id,
        'image_seq_length': options.patches,
        'vision_feature_layer': -2,
        'vision_feature_select_strategy': 'default',
    }
    how: dict[str, Any] = {
        'tokenizer': tokenizer,
        'patch_size': PATCH,
        'vision_feature_select_strategy': 'default',
        'num_additional_image_tokens': 1,
        'chat_template': VISUALS_FIRST,
    }
    if options.family == 'llava':
        config: Any = transformers.LlavaConfig(**shared)
        processor: Any = transformers.LlavaProcessor(transformers.CLIPImageProcessor(**sizes), **how)
        kind: Any = transformers.LlavaForConditionalGeneration
    elif options.family == 'llava_next':
        config = transformers.LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints)
        processor = transformers.LlavaNextProcessor(images, **how)
        kind = transformers.LlavaNextForConditionalGeneration
    else:
        config = transformers.LlavaNextVideoConfig(
            **shared,
            image_grid_pinpoints=pinpoints,
            video_token_index=tokenizer.video_token_id,
            video_seq_length=options.patches // 4,
            spatial_pool_mode='average',
            spatial_pool_stride=2,
        )
        clips = transformers.LlavaNextVideoVideoProcessor(**sizes)
        processor = transformers.LlavaNextVideoProcessor(clips, images, **how)
        kind = transformers.LlavaNextVideoForConditionalGeneration
    save(options, out, kind, config, processor, ['</s>'])
