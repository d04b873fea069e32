"""Tiny PaliGemma: a SigLIP tower and a Gemma that reads its prompt in both directions."""

from __future__ import annotations

from pathlib import Path

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.tokenizers import make_tokenizer


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny PaliGemma, without a chat template as the large one. The processor adds 1152 tokens of its own."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<pad>',
        eos='<eos>',
        bos='<bos>',
        named={'image_token': '<image>'},
    )
    side, width = options.image_size, options.hidden // options.num_heads
    images = transformers.SiglipImageProcessor(size={'height': side, 'width': side})
    images.image_seq_length = (side // PATCH) ** 2
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    config = transformers.PaliGemmaConfig(
        text_config={'model_type': 'gemma', **options.decoder(tokenizer, head_dim=width)},
        vision_config={
            'model_type': 'siglip_vision_model',
            'hidden_size': options.vision_hidden,
            'intermediate_size': 2 * options.vision_hidden,
            'num_hidden_layers': options.vision_layers,
            'num_attention_heads': options.vision_heads,
            'image_size': side,
            'patch_size': PATCH,
            'projection_dim': options.hidden,
            'vision_use_head': False,
        },
        projection_dim=options.hidden,
        hidden_size=options.hidden,
        image_token_index=tokenizer.image_token_id,
    )
    save(options, out, lambda: transformers.PaliGemmaForConditionalGeneration(config), processor, ['<eos>'])
