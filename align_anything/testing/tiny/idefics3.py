"""Tiny Idefics3: no file of its own under `models/families`, so it shows what the default rules can do."""

from __future__ import annotations

from pathlib import Path

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import content, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer

SCALE = 2
EXTRA = ['<fake_token_around_image>', '<global-img>', '<end_of_utterance>']
EXTRA += [f'<row_{row}_col_{column}>' for row in range(1, 5) for column in range(1, 5)]


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Idefics3. An image is cut into up to four and shown whole beside them."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<pad>',
        eos='<|end_of_text|>',
        bos='<|begin_of_text|>',
        add_bos=True,
        extra=EXTRA,
        named={'image_token': '<image>'},
    )
    side = options.image_size
    config = transformers.Idefics3Config(
        vision_config={
            'hidden_size': options.vision_hidden,
            'intermediate_size': 2 * options.vision_hidden,
            'num_hidden_layers': options.vision_layers,
            'num_attention_heads': options.vision_heads,
            'image_size': side,
            'patch_size': PATCH,
        },
        text_config={'model_type': 'llama', **options.decoder(tokenizer)},
        scale_factor=SCALE,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessor(
            size={'longest_edge': 2 * side}, max_image_size={'longest_edge': side}, do_image_splitting=True
        ),
        tokenizer,
        image_seq_len=(side // PATCH // SCALE) ** 2,
        chat_template=turns(
            '{role}: ',
            '<end_of_utterance>\n',
            content({'image': '<image>'}),
            start='{{ bos_token }}',
            roles={'user': 'User', 'assistant': 'Assistant', 'system': 'System'},
        ),
    )
    stops = ['<|end_of_text|>', '<end_of_utterance>']
    save(options, out, lambda: transformers.Idefics3ForConditionalGeneration(config), processor, stops)
