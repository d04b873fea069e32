"""A tiny Emu3: a decoder whose vocabulary holds the codes of pictures, in rows that a token ends."""

from __future__ import annotations

from pathlib import Path

import transformers

from align_anything.testing.tiny.books import ENTRIES, FACTOR, check_picture, encoder_of_codes, spread_book
from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.tokenizers import make_tokenizer

TOKENS = {
    'image_token': '<image>',
    'boi_token': '<|image start|>',
    'eoi_token': '<|image end|>',
    'image_wrapper_token': '<|image token|>',
    'eof_token': '<|extra_201|>',
}
ROW_END = '<|extra_200|>'
# As published: pictures before words whatever their order in the turn, a blank behind all words, no end of a turn.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Emu3."""
    check_picture(options)
    codes = [f'<|visual token {number:06d}|>' for number in range(ENTRIES)]
    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<|endoftext|>',
        eos='<|extra_204|>',
        bos='<|extra_203|>',
        extra=[ROW_END, *codes],
        named=TOKENS,
    )
    codec = {'codebook_size': ENTRIES, 'embed_dim': 8, 'latent_channels': 8, 'attn_resolutions': [3], 'hidden_size': 32}
    config = transformers.Emu3Config(
        vq_config=encoder_of_codes(**codec, num_attention_heads=1),
        text_config=options.decoder(tokenizer, attention_dropout=0.0),
        vocabulary_map=tokenizer.get_vocab(),
    )
    pictures = transformers.Emu3ImageProcessor(
        min_pixels=(options.image_size // 2) ** 2, max_pixels=options.image_size**2, spatial_factor=FACTOR
    )
    processor = transformers.Emu3Processor(pictures, tokenizer, chat_template=TEMPLATE)
    side = options.image_size
    save(
        options,
        out,
        transformers.Emu3ForConditionalGeneration,
        config,
        processor,
        ['<|extra_204|>'],
        lambda model: spread_book(model.model.vqmodel, side, sized=True),
    )
