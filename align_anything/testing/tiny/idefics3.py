"""Tiny Idefics3 and SmolVLM, which is the same with clips as pictures between timestamps in text.

Idefics3 has no file of its own under `models/families`, so it shows what the default rules can do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.templates import idefics
from align_anything.testing.tiny.tokenizers import make_tokenizer

SCALE = 2
EXTRA = ['<fake_token_around_image>', '<global-img>', '<end_of_utterance>']
EXTRA += [f'<row_{row}_col_{column}>' for row in range(1, 5) for column in range(1, 5)]
TOKENIZERS: dict[str, dict[str, Any]] = {
    'idefics3': {
        'eos': '<|end_of_text|>',
        'bos': '<|begin_of_text|>',
        'add_bos': True,
        'named': {'image_token': '<image>'},
    },
    'smolvlm': {
        'eos': '<|im_end|>',
        'bos': '<|im_start|>',
        'named': {
            'image_token': '<image>',
            'fake_image_token': '<fake_token_around_image>',
            'global_image_token': '<global-img>',
            'end_of_utterance_token': '<end_of_utterance>',
            'video_token': '<video>',
        },
    },
}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Idefics3 or SmolVLM. A picture is cut into up to four and shown whole beside them.

    SmolVLM has the template that transformers puts in place of any other once a clip is there.
    """
    tokenizer = make_tokenizer(options.vocab, options.corpus, pad='<pad>', extra=EXTRA, **TOKENIZERS[options.family])
    shared: dict[str, Any] = {
        'vision_config': options.tower(),
        'text_config': {'model_type': 'llama', **options.decoder(tokenizer)},
        'scale_factor': SCALE,
        'image_token_id': tokenizer.image_token_id,
        'pad_token_id': tokenizer.pad_token_id,
    }
    largest = {'longest_edge': options.image_size}
    how: dict[str, Any] = {
        'size': {'longest_edge': 2 * options.image_size},
        'max_image_size': largest,
        'do_image_splitting': True,
    }
    tokens = options.patches // SCALE**2
    if options.family == 'idefics3':
        config: Any = transformers.Idefics3Config(**shared)
        images = transformers.Idefics3ImageProcessor(**how)
        processor: Any = transformers.Idefics3Processor(
            images, tokenizer, image_seq_len=tokens, chat_template=idefics()
        )
        kind: Any = transformers.Idefics3ForConditionalGeneration
    else:
        config = transformers.SmolVLMConfig(**shared)
        processor = transformers.SmolVLMProcessor(
            transformers.SmolVLMImageProcessor(**how),
            tokenizer,
            transformers.SmolVLMVideoProcessor(size=largest, max_image_size=largest, fps=1, num_frames=8),
            image_seq_len=tokens,
            chat_template=DEFAULT_CHAT_TEMPLATE,
        )
        kind = transformers.SmolVLMForConditionalGeneration
    save(options, out, kind, config, processor, [tokenizer.eos_token, '<end_of_utterance>'])
