"""A tiny Chameleon: a decoder whose vocabulary holds the codes of pictures, of one size all."""

from __future__ import annotations

from pathlib import Path

import transformers

from align_anything.testing.tiny.books import ENTRIES, FACTOR, check_picture, encoder_of_codes, spread_book
from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.tokenizers import make_tokenizer

TOKENS = {'image_token': '<image>', 'boi_token': '<racm3:break>', 'eoi_token': '<eoss>'}
SEPARATOR = '<reserved08706>'


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Chameleon, without a chat template, as it is published."""
    check_picture(options)
    # The digits of a code's number as letters.
    codes = [f'IMGIMG{"".join(chr(ord("A") + int(digit)) for digit in str(number))}Z' for number in range(ENTRIES)]
    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<pad>',
        eos='</s>',
        bos='<s>',
        extra=[*codes, SEPARATOR],
        named=TOKENS,
        add_bos=True,
    )
    tokenizer.sep_token = SEPARATOR
    codec = {'embed_dim': 8, 'num_embeddings': ENTRIES, 'latent_channels': 8, 'resolution': options.image_size}
    config = transformers.ChameleonConfig(
        **options.decoder(tokenizer), vocabulary_map=tokenizer.get_vocab(), vq_config=encoder_of_codes(**codec)
    )
    side = options.image_size
    pictures = transformers.ChameleonImageProcessor(size={'shortest_edge': side}, crop_size=options.square)
    processor = transformers.ChameleonProcessor(pictures, tokenizer, image_seq_length=(side // FACTOR) ** 2)
    save(
        options,
        out,
        transformers.ChameleonForConditionalGeneration,
        config,
        processor,
        ['</s>'],
        lambda model: spread_book(model.model.vqmodel, side),
    )
