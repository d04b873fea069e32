"""Tiny InternVL: no file of its own under `models/families`; its images come as a varying number of tiles."""

from __future__ import annotations

from pathlib import Path

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import CHATML_CLOSING, CHATML_OPENING, content, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny InternVL."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<|endoftext|>',
        eos='<|im_end|>',
        extra=['<|im_start|>'],
        named={
            'start_image_token': '<img>',
            'end_image_token': '</img>',
            'context_image_token': '<IMG_CONTEXT>',
            'video_token': '<video>',
        },
    )
    side = options.image_size
    tokens = (side // PATCH // 2) ** 2
    config = transformers.InternVLConfig(
        vision_config={
            'hidden_size': options.vision_hidden,
            'intermediate_size': 2 * options.vision_hidden,
            'num_hidden_layers': options.vision_layers,
            'num_attention_heads': options.vision_heads,
            'image_size': [side, side],
            'patch_size': [PATCH, PATCH],
        },
        text_config={'model_type': 'qwen2', **options.decoder(tokenizer)},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=tokens,
        downsample_ratio=0.5,
    )
    size = {'height': side, 'width': side}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=tokens,
        chat_template=turns(
            CHATML_OPENING, CHATML_CLOSING, content({'image': '<IMG_CONTEXT>\n', 'video': '<video>\n'})
        ),
    )
    kind = transformers.InternVLForConditionalGeneration
    save(options, out, lambda: kind(config), processor, ['<|im_end|>', '<|endoftext|>'])
