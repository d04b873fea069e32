"""Tiny Idefics2: images keep their shape, and a resampler gives each the same number of tokens."""

from __future__ import annotations

from pathlib import Path

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import content, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer

LATENTS = 8


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Idefics2."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<pad>',
        eos='</s>',
        bos='<s>',
        add_bos=True,
        extra=['<end_of_utterance>'],
        named={'image_token': '<image>', 'image_boundary_token': '<fake_token_around_image>'},
    )
    side = options.image_size
    config = transformers.Idefics2Config(
        vision_config={
            'hidden_size': options.vision_hidden,
            'intermediate_size': 2 * options.vision_hidden,
            'num_hidden_layers': options.vision_layers,
            'num_attention_heads': options.vision_heads,
            'image_size': side,
            'patch_size': PATCH,
        },
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
    processor = transformers.Idefics2Processor(
        transformers.Idefics2ImageProcessor(
            size={'shortest_edge': 3 * side // 4, 'longest_edge': side}, do_image_splitting=False
        ),
        tokenizer,
        image_seq_len=LATENTS,
        chat_template=turns(
            '{role}: ',
            '<end_of_utterance>\n',
            content({'image': '<image>'}),
            start='{{ bos_token }}',
            roles={'user': 'User', 'assistant': 'Assistant', 'system': 'System'},
        ),
    )
    stops = ['</s>', '<end_of_utterance>']
    save(options, out, lambda: transformers.Idefics2ForConditionalGeneration(config), processor, stops)
