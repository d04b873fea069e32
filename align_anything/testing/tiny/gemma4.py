"""Tiny Gemma 4: images, videos and audio beside text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.templates import content, gemma
from align_anything.testing.tiny.tokenizers import GEMMA, make_tokenizer

PATCH, POOL = 16, 2
NAMED = {
    'image_token': '<|image|>',
    'boi_token': '<|image>',
    'eoi_token': '<image|>',
    'audio_token': '<|audio|>',
    'boa_token': '<|audio>',
    'eoa_token': '<audio|>',
}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Gemma 4 of the smaller sort, which reads pictures from left to right as it reads text."""
    tokenizer = make_tokenizer(
        options.vocab, options.corpus, **GEMMA, add_bos=True, extra=['<|turn>', '<turn|>', '<|video|>'], named=NAMED
    )
    token, width = tokenizer.convert_tokens_to_ids, options.head_width
    text = options.decoder(
        tokenizer,
        head_dim=width,
        global_head_dim=width,
        sliding_window=64,
        layer_types=['sliding_attention'] * (options.layers - 1) + ['full_attention'],
        vocab_size_per_layer_input=len(tokenizer),
        hidden_size_per_layer_input=16,
        final_logit_softcapping=30.0,
    )
    vision = {
        'hidden_size': options.vision_hidden,
        'intermediate_size': 2 * options.vision_hidden,
        'num_hidden_layers': options.vision_layers,
        'num_attention_heads': options.vision_heads,
        'num_key_value_heads': options.vision_heads,
        'head_dim': options.vision_hidden // options.vision_heads,
        'patch_size': PATCH,
        'pooling_kernel_size': POOL,
        'position_embedding_size': 64,
    }
    audio = {
        'hidden_size': options.vision_hidden,
        'num_hidden_layers': options.vision_layers,
        'num_attention_heads': options.vision_heads,
        'subsampling_conv_channels': [128, 8],
        'output_proj_dims': options.vision_hidden,
    }
    ids = {f'{kind}_token_id': token(f'<|{kind}|>') for kind in ('image', 'video', 'audio')}
    ids |= {'boi_token_id': token('<|image>'), 'eoi_token_id': token('<image|>')}
    ids |= {'boa_token_id': token('<|audio>'), 'eoa_token_index': token('<audio|>')}
    config = transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=audio, **ids)
    how: dict[str, Any] = {'patch_size': PATCH, 'pooling_kernel_size': POOL, 'max_soft_tokens': 70}
    processor = transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(feature_size=128),
        transformers.Gemma4ImageProcessor(**how),
        tokenizer,
        transformers.Gemma4VideoProcessor(**how),
        image_seq_length=70,
        chat_template=gemma(
            content({'image': '<|image|>', 'video': '<|video|>', 'audio': '<|audio|>'}), '<|turn>{role}\n', '<turn|>\n'
        ),
    )
    save(options, out, transformers.Gemma4ForConditionalGeneration, config, processor, ['<eos>', '<turn|>'])
