"""Tiny Gemma 3 with a SigLIP tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import content, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Gemma 3."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<pad>',
        eos='<eos>',
        bos='<bos>',
        add_bos=True,
        extra=['<start_of_turn>', '<end_of_turn>'],
        named={'image_token': '<image_soft_token>', 'boi_token': '<start_of_image>', 'eoi_token': '<end_of_image>'},
    )
    side, width = options.image_size, options.hidden // options.num_heads
    tokens = (side // PATCH // 2) ** 2
    text = options.decoder(tokenizer, head_dim=width, sliding_window=64, query_pre_attn_scalar=width)
    vision = {
        'hidden_size': options.vision_hidden,
        'intermediate_size': 2 * options.vision_hidden,
        'num_hidden_layers': options.vision_layers,
        'num_attention_heads': options.vision_heads,
        'image_size': side,
        'patch_size': PATCH,
        'vision_use_head': False,
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=tokens,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={'height': side, 'width': side}, image_seq_length=tokens),
        tokenizer,
        image_seq_length=tokens,
        chat_template=turns(
            '<start_of_turn>{role}\n',
            '<end_of_turn>\n',
            content({'image': '<start_of_image>'}),
            start='{{ bos_token }}',
            roles={'assistant': 'model'},
        ),
    )

    def make() -> Any:
        model = transformers.Gemma3ForConditionalGeneration(config)
        # transformers starts this projector at zero: images would change nothing and the tower would get no gradient.
        projection = model.model.multi_modal_projector.mm_input_projection_weight
        projection.data.normal_(std=projection.shape[0] ** -0.5)
        return model

    save(options, out, make, processor, ['<eos>', '<end_of_turn>'])
