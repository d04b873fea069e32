"""Tiny Idefics2: images keep their shape, and a resampler gives each the same number of tokens."""

from __future__ import annotations

from pathlib import Path

import transformers

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.templates import idefics
from align_anything.testing.tiny.tokenizers import LLAMA2, make_tokenizer

LATENTS = 8
NAMED = {'image_token': '<image>', 'image_boundary_token': '<fake_token_around_image>'}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Idefics2."""
    tokenizer = make_tokenizer(options.vocab, options.corpus, **LLAMA2, extra=['<end_of_utterance>'], named=NAMED)
    config = transformers.Idefics2Config(
        vision_config=options.tower(),
        perceiver_config={
            'hidden_size': options.hidden,
            'resampler_n_latents': LATENTS,
            'resampler_depth': 1,
            'resampler_n_heads': 4,
            'resampler_head_dim': 16,
            'num_key_value_heads': 2,
        },
        text_config={'model_type': 'mistral', **options.decoder(tokenizer)},
        image_token_id=tokenizer.image_token_id,
    )
    size = {'shortest_edge': 3 * options.image_size // 4, 'longest_edge': options.image_size}
    processor = transformers.Idefics2Processor(
        transformers.Idefics2ImageProcessor(size=size, do_image_splitting=False),
        tokenizer,
        image_seq_len=LATENTS,
        chat_template=idefics(),
    )
    stops = ['</s>', '<end_of_utterance>']
    save(options, out, transformers.Idefics2ForConditionalGeneration, config, processor, stops)
