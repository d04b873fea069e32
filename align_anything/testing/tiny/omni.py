"""Tiny thinkers of Qwen2.5-Omni and Qwen3-Omni: images, videos and audio in, text out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.testing.tiny.options import MELS, TinyOptions, save
from align_anything.testing.tiny.templates import CHATML_CLOSING, CHATML_OPENING, content, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer

MERGE = 2
NAMED = {
    'image_token': '<|IMAGE|>',
    'audio_token': '<|AUDIO|>',
    'video_token': '<|VIDEO|>',
    'vision_bos_token': '<|vision_bos|>',
    'vision_eos_token': '<|vision_eos|>',
    'audio_bos_token': '<|audio_bos|>',
    'audio_eos_token': '<|audio_eos|>',
}
BODY = content(
    {
        'image': '<|vision_bos|><|IMAGE|><|vision_eos|>',
        'video': '<|vision_bos|><|VIDEO|><|vision_eos|>',
        'audio': '<|audio_bos|><|AUDIO|><|audio_eos|>',
    }
)


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny thinker. Videos have at least four tokens a pair of frames, audio up to two seconds."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<|endoftext|>',
        eos='<|im_end|>',
        extra=['<|im_start|>'],
        named=NAMED,
    )
    large = options.family == 'qwen3_omni_moe_thinker'
    width = options.hidden // options.num_heads
    rotary: dict[str, Any] = {'rope_type': 'default', 'rope_theta': 1e6}
    rotary['mrope_section'] = [width // 2 - 2 * (3 * width // 16), 3 * width // 16, 3 * width // 16]
    text = options.decoder(tokenizer, rope_parameters=rotary)
    audio = {
        'd_model': options.vision_hidden,
        'encoder_layers': options.vision_layers,
        'encoder_attention_heads': options.vision_heads,
        'encoder_ffn_dim': 2 * options.vision_hidden,
        'num_mel_bins': MELS,
        'max_source_positions': 50 * options.sound_seconds,
        'n_window': 50,
        'output_dim': options.hidden,
        # With the usual range three convolutions leave next to nothing of an audio clip in so small a model.
        'initializer_range': 0.1,
    }
    vision = {
        'depth': options.vision_layers,
        'hidden_size': options.vision_hidden,
        'out_hidden_size': options.hidden,
        'num_heads': options.vision_heads,
        'intermediate_size': 2 * options.vision_hidden,
    }
    if large:
        patch = 16
        rotary['mrope_interleaved'] = True
        text |= {
            'head_dim': width,
            'num_experts': 4,
            'num_experts_per_tok': 2,
            'moe_intermediate_size': options.hidden // 2,
        }
        audio |= {'n_window_infer': 100, 'downsample_hidden_size': 16}
        vision |= {'patch_size': patch, 'num_position_embeddings': 64, 'deepstack_visual_indexes': [0]}
    else:
        patch = 14
        # The last layer alone attends to the whole image.
        vision |= {'patch_size': patch, 'window_size': 56, 'fullatt_block_indexes': [options.vision_layers - 1]}
    token = tokenizer.convert_tokens_to_ids
    ending = 'id' if large else 'index'
    ids = {f'{kind}_token_{ending}': token(f'<|{kind.upper()}|>') for kind in ('image', 'video', 'audio')}
    ids |= {
        'audio_start_token_id': token('<|audio_bos|>'),
        'vision_start_token_id': token('<|vision_bos|>'),
        'vision_end_token_id': token('<|vision_eos|>'),
        'pad_token_id': tokenizer.pad_token_id,
    }
    name = 'Qwen3OmniMoe' if large else 'Qwen2_5Omni'
    config = getattr(transformers, f'{name}ThinkerConfig')(
        audio_config=audio, vision_config=vision, text_config=text, position_id_per_seconds=13 if large else 25, **ids
    )
    unit = (patch * MERGE) ** 2
    how: dict[str, Any] = {'patch_size': patch, 'merge_size': MERGE, 'temporal_patch_size': 2}
    processor = getattr(transformers, f'{name}Processor')(
        transformers.Qwen2VLImageProcessor(
            **how, size={'shortest_edge': 4 * unit, 'longest_edge': max(4 * unit, options.image_size**2)}
        ),
        transformers.Qwen2VLVideoProcessor(**how, size={'shortest_edge': 4 * unit, 'longest_edge': 64 * unit}),
        transformers.WhisperFeatureExtractor(
            feature_size=MELS, chunk_length=options.sound_seconds, return_attention_mask=True
        ),
        tokenizer,
        chat_template=turns(CHATML_OPENING, CHATML_CLOSING, BODY),
    )
    kind = getattr(transformers, f'{name}ThinkerForConditionalGeneration')
    save(options, out, lambda: kind(config), processor, ['<|im_end|>', '<|endoftext|>'])
