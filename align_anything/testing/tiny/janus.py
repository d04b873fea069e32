"""A tiny Janus: a SigLIP tower to read pictures, and a second vocabulary of codes to write them."""

from __future__ import annotations

from pathlib import Path

import transformers

from align_anything.testing.tiny.books import ENTRIES, FACTOR, check_picture, encoder_of_codes, spread_book
from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.tokenizers import make_tokenizer

END = '<|end_of_sentence|>'
TOKENS = {
    'image_token': '<image_placeholder>',
    'boi_token': '<begin_of_image>',
    'eoi_token': '<end_of_image>',
}
ROLES = {'user': '<|User|>', 'assistant': '<|Assistant|>'}
# As published: pictures and pieces of text in lines of their own, no end behind the last turn.
TEMPLATE = (
    f"{{% for message in messages %}}{{{{ {ROLES!r}.get(message['role'], message['role'].capitalize()) + ': ' }}}}"
    "{% for part in message['content'] %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{% if part['type'] == 'image' %}{{ '<image_placeholder>' }}{% else %}{{ part['text'].strip() }}{% endif %}"
    '{% endfor %}{% if not loop.last or add_generation_prompt %}'
    f"{{{{ {END!r} if message['role'] == 'assistant' else '\n\n' }}}}{{% endif %}}{{% endfor %}}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Janus."""
    check_picture(options)
    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<|pad|>',
        eos=END,
        bos='<|begin_of_sentence|>',
        extra=[*ROLES.values()],
        named=TOKENS,
        add_bos=True,
    )
    side = options.image_size
    tokens = (side // FACTOR) ** 2
    tower = {
        'hidden_size': options.vision_hidden,
        'num_hidden_layers': options.vision_layers,
        'num_attention_heads': options.vision_heads,
        'image_size': side,
        # A feature for each code: the configuration derives the size of pictures to write from those to read.
        'patch_size': FACTOR,
        'projection_dim': options.hidden,
        'num_image_tokens': tokens,
        'depth': 2,
        'mlp_ratio': 2.0,
    }
    codec = {'embed_dim': 8, 'num_embeddings': ENTRIES, 'latent_channels': 16}
    joining = {'projection_dim': options.hidden, 'image_token_embed_dim': options.hidden}
    config = transformers.JanusConfig(
        text_config={'model_type': 'llama', **options.decoder(tokenizer)},
        vision_config=tower,
        vq_config=encoder_of_codes(**codec, **joining),
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    processor = transformers.JanusProcessor(
        transformers.JanusImageProcessor(size=options.square, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer,
        chat_template=TEMPLATE,
        num_image_tokens=tokens,
    )
    save(
        options,
        out,
        transformers.JanusForConditionalGeneration,
        config,
        processor,
        [END],
        lambda model: spread_book(model.model.vqmodel, side, directions=True),
    )
