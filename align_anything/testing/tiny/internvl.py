"""Tiny InternVL: no file of its own under `models/families`; its images come as a varying number of tiles."""

from __future__ import annotations

from pathlib import Path

import transformers

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import chatml, content
from align_anything.testing.tiny.tokenizers import CHATML, CHATML_STOPS, make_tokenizer

NAMED = {
    'start_image_token': '<img>',
    'end_image_token': '</img>',
    'context_image_token': '<IMG_CONTEXT>',
    'video_token': '<video>',
}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny InternVL."""
    tokenizer = make_tokenizer(options.vocab, options.corpus, **CHATML, named=NAMED)
    side, size, tokens = options.image_size, options.square, options.patches // 4
    config = transformers.InternVLConfig(
        vision_config=options.tower(image_size=[side, side], patch_size=[PATCH, PATCH]),
        text_config={'model_type': 'qwen2', **options.decoder(tokenizer)},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=tokens,
        downsample_ratio=0.5,
    )
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=tokens,
        chat_template=chatml(content({'image': '<IMG_CONTEXT>\n', 'video': '<video>\n'})),
    )
    save(options, out, transformers.InternVLForConditionalGeneration, config, processor, CHATML_STOPS)
