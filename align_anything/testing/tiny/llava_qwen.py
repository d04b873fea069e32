"""Tiny LLaVAs over a Qwen2, which take several pictures: LLaVA-OneVision, with clips too, and LLaVA-Interleave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import chatml, content
from align_anything.testing.tiny.tokenizers import CHATML, CHATML_STOPS, make_tokenizer


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny LLaVA of the family that the options name."""
    clips = options.family == 'llava_onevision'
    named = {'image_token': '<image>'} | ({'video_token': '<video>'} if clips else {})
    tokenizer = make_tokenizer(options.vocab, options.corpus, **CHATML, named=named)
    shared: dict[str, Any] = {
        'vision_config': options.tower(model_type='siglip_vision_model', vision_use_head=False),
        'text_config': {'model_type': 'qwen2', **options.decoder(tokenizer)},
        'image_token_index': tokenizer.image_token_id,
        'vision_feature_layer': -1,
        'vision_feature_select_strategy': 'full',
    }
    how: dict[str, Any] = {'tokenizer': tokenizer, 'vision_feature_select_strategy': 'full'}
    size, pinpoints = options.square, options.pinpoints
    if clips:
        config: Any = transformers.LlavaOnevisionConfig(
            **shared,
            video_token_index=tokenizer.video_token_id,
            image_grid_pinpoints=pinpoints,
            vision_aspect_ratio='anyres_max_9',
        )
        processor: Any = transformers.LlavaOnevisionProcessor(
            image_processor=transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
            video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
            num_image_tokens=options.patches,
            vision_aspect_ratio='anyres_max_9',
            chat_template=chatml(content({'image': '<image>\n', 'video': '<video>\n'})),
            **how,
        )
        kind: Any = transformers.LlavaOnevisionForConditionalGeneration
    else:
        config = transformers.LlavaConfig(**shared, image_seq_length=options.patches)
        processor = transformers.LlavaProcessor(
            transformers.SiglipImageProcessor(size=size),
            patch_size=PATCH,
            num_additional_image_tokens=0,
            chat_template=chatml(content({'image': '<image>\n'})),
            **how,
        )
        kind = transformers.LlavaForConditionalGeneration
    save(options, out, kind, config, processor, CHATML_STOPS)
