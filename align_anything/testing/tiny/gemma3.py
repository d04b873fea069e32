"""Tiny Gemma 3 with a SigLIP tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.templates import content, gemma
from align_anything.testing.tiny.tokenizers import GEMMA_STOPS, GEMMA_TURNS, make_tokenizer

NAMED = {'image_token': '<image_soft_token>', 'boi_token': '<start_of_image>', 'eoi_token': '<end_of_image>'}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Gemma 3."""
    tokenizer = make_tokenizer(options.vocab, options.corpus, **GEMMA_TURNS, named=NAMED)
    width, tokens = options.head_width, options.patches // 4
    config = transformers.Gemma3Config(
        text_config=options.decoder(tokenizer, head_dim=width, sliding_window=64, query_pre_attn_scalar=width),
        vision_config=options.tower(vision_use_head=False),
        mm_tokens_per_image=tokens,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size=options.square, image_seq_length=tokens),
        tokenizer,
        image_seq_length=tokens,
        chat_template=gemma(content({'image': '<start_of_image>'})),
    )
    save(options, out, transformers.Gemma3ForConditionalGeneration, config, processor, GEMMA_STOPS, _open_projector)


def _open_projector(model: Any) -> None:
    # transformers starts this projector at zero: pictures would change nothing and the tower would get no gradient.
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    projection.data.normal_(std=projection.shape[0] ** -0.5)
