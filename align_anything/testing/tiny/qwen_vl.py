"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a tower of patches, multimodal rotary positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.templates import CHATML_CLOSING, CHATML_OPENING, content, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer

MERGE = 2
BODY = content(
    {
        'image': '<|vision_start|><|image_pad|><|vision_end|>',
        'video': '<|vision_start|><|video_pad|><|vision_end|>',
    }
)
NAMED = {
    'image_token': '<|image_pad|>',
    'video_token': '<|video_pad|>',
    'vision_start_token': '<|vision_start|>',
    'vision_end_token': '<|vision_end|>',
}


def _vision(options: TinyOptions) -> tuple[int, dict[str, Any]]:
    """Returns the side of a patch and the configuration of the tower."""
    width, layers = options.vision_hidden, options.vision_layers
    if options.family == 'qwen2_vl':
        return 14, {
            'depth': layers,
            'embed_dim': width,
            'hidden_size': options.hidden,
            'num_heads': options.vision_heads,
            'mlp_ratio': 2,
            'patch_size': 14,
        }
    shared = {
        'depth': layers,
        'hidden_size': width,
        'out_hidden_size': options.hidden,
        'num_heads': options.vision_heads,
        'intermediate_size': 2 * width,
    }
    if options.family == 'qwen2_5_vl':
        # The last layer alone attends to the whole image.
        windows = {'window_size': 56, 'fullatt_block_indexes': [layers - 1], 'tokens_per_second': 2}
        return 14, {**shared, **windows, 'patch_size': 14}
    return 16, {**shared, 'patch_size': 16, 'num_position_embeddings': 64, 'deepstack_visual_indexes': [0]}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Qwen-VL. Images keep their shape: up to `image_size` squared pixels, at least four tokens."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<|endoftext|>',
        eos='<|im_end|>',
        extra=['<|im_start|>'],
        named=NAMED,
    )
    patch, vision = _vision(options)
    width = options.hidden // options.num_heads
    # Sections of half a head for time, height and width.
    rotary: dict[str, Any] = {'rope_type': 'default', 'rope_theta': 1e6}
    rotary['mrope_section'] = [width // 2 - 2 * (3 * width // 16), 3 * width // 16, 3 * width // 16]
    text = options.decoder(tokenizer, rope_parameters=rotary)
    token = tokenizer.convert_tokens_to_ids
    ids = {
        'image_token_id': token('<|image_pad|>'),
        'video_token_id': token('<|video_pad|>'),
        'vision_start_token_id': token('<|vision_start|>'),
        'vision_end_token_id': token('<|vision_end|>'),
    }
    name = {'qwen2_vl': 'Qwen2VL', 'qwen2_5_vl': 'Qwen2_5_VL', 'qwen3_vl': 'Qwen3VL'}[options.family]
    if options.family == 'qwen3_vl':
        rotary['mrope_interleaved'] = True
        text['head_dim'] = width
    unit = (patch * MERGE) ** 2
    size = {'shortest_edge': 4 * unit, 'longest_edge': max(4 * unit, options.image_size**2)}
    how: dict[str, Any] = {'patch_size': patch, 'merge_size': MERGE, 'temporal_patch_size': 2}
    videos = transformers.Qwen3VLVideoProcessor if options.family == 'qwen3_vl' else transformers.Qwen2VLVideoProcessor
    processor = getattr(transformers, f'{name}Processor')(
        transformers.Qwen2VLImageProcessor(**how, size=size),
        tokenizer,
        videos(**how, size={'shortest_edge': 4 * unit, 'longest_edge': 64 * unit}),
        chat_template=turns(CHATML_OPENING, CHATML_CLOSING, BODY),
    )
    config = getattr(transformers, f'{name}Config')(text_config=text, vision_config=vision, **ids)
    kind = getattr(transformers, f'{name}ForConditionalGeneration')
    save(options, out, lambda: kind(config), processor, ['<|im_end|>', '<|endoftext|>'])
