"""Tiny LLaVA-1.5 and LLaVA-NeXT: a CLIP tower, a projector, a Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import VISUALS_FIRST
from align_anything.testing.tiny.tokenizers import make_tokenizer


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny LLaVA."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<pad>',
        eos='</s>',
        bos='<s>',
        add_bos=True,
        named={'image_token': '<image>'},
    )
    side = options.image_size
    pinpoints = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    sizes: dict[str, Any] = {'size': {'shortest_edge': side}, 'crop_size': {'height': side, 'width': side}}
    shared: dict[str, Any] = {
        'vision_config': {
            'model_type': 'clip_vision_model',
            'hidden_size': options.vision_hidden,
            'intermediate_size': 2 * options.vision_hidden,
            'num_hidden_layers': options.vision_layers,
            'num_attention_heads': options.vision_heads,
            'image_size': side,
            'patch_size': PATCH,
            'projection_dim': options.vision_hidden,
        },
        'text_config': {'model_type': 'llama', **options.decoder(tokenizer)},
        'image_token_index': tokenizer.image_token_id,
        'image_seq_length': (side // PATCH) ** 2,
        'vision_feature_layer': -2,
        'vision_feature_select_strategy': 'default',
    }
    how = {
        'patch_size': PATCH,
        'vision_feature_select_strategy': 'default',
        'num_additional_image_tokens': 1,
        'chat_template': VISUALS_FIRST,
    }
    if options.family == 'llava':
        config: Any = transformers.LlavaConfig(**shared)
        processor: Any = transformers.LlavaProcessor(transformers.CLIPImageProcessor(**sizes), tokenizer, **how)
        kind: Any = transformers.LlavaForConditionalGeneration
    else:
        config = transformers.LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints)
        images = transformers.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=pinpoints)
        processor = transformers.LlavaNextProcessor(images, tokenizer, **how)
        kind = transformers.LlavaNextForConditionalGeneration
    save(options, out, lambda: kind(config), processor, ['</s>'])
