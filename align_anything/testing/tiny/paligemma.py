"""Tiny PaliGemma: a SigLIP tower and a Gemma that reads its prompt in both directions."""

from __future__ import annotations

from pathlib import Path

import transformers

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.tokenizers import GEMMA, make_tokenizer


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny PaliGemma, without a chat template as the large one. The processor adds 1152 tokens of its own."""
    tokenizer = make_tokenizer(options.vocab, options.corpus, **GEMMA, named={'image_token': '<image>'})
    images = transformers.SiglipImageProcessor(size=options.square)
    images.image_seq_length = options.patches
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    tower = options.tower(model_type='siglip_vision_model', projection_dim=options.hidden, vision_use_head=False)
    config = transformers.PaliGemmaConfig(
        text_config={'model_type': 'gemma', **options.decoder(tokenizer, head_dim=options.head_width)},
        vision_config=tower,
        projection_dim=options.hidden,
        hidden_size=options.hidden,
        image_token_index=tokenizer.image_token_id,
    )
    save(options, out, transformers.PaliGemmaForConditionalGeneration, config, processor, ['<eos>'])
