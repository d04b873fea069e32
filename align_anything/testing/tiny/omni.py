"""Tiny thinkers of Qwen2.5-Omni and Qwen3-Omni: images, videos and audio in, text out."""

from __future__ import annotations

from pathlib import Path

import transformers

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.qwen_vl import rotary, tower, visuals
from align_anything.testing.tiny.templates import chatml, content
from align_anything.testing.tiny.tokenizers import CHATML, CHATML_STOPS, make_tokenizer

NAMED = {
    'image_token': '<|IMAGE|>',
    'audio_token': '<|AUDIO|>',
    'video_token': '<|VIDEO|>',
    'vision_bos_token': '<|vision_bos|>',
    'vision_eos_token': '<|vision_eos|>',
    'audio_bos_token': '<|audio_bos|>',
    'audio_eos_token': '<|audio_eos|>',
}
MEDIA = {
    'image': '<|vision_bos|><|IMAGE|><|vision_eos|>',
    'video': '<|vision_bos|><|VIDEO|><|vision_eos|>',
    'audio': '<|audio_bos|><|AUDIO|><|audio_eos|>',
}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny thinker. Clips have at least four tokens a pair of frames, sounds up to two seconds."""
    tokenizer = make_tokenizer(options.vocab, options.corpus, **CHATML, named=NAMED)
    large = options.family == 'qwen3_omni_moe_thinker'
    text = options.decoder(tokenizer, rope_parameters=rotary(options, large))
    vision = tower(options, large)
    audio = {
        **options.whisper(),
        'n_window': 50,
        'output_dim': options.hidden,
        # With the usual range three convolutions leave next to nothing of an audio clip in so small a model.
        'initializer_range': 0.1,
    }
    if large:
        text |= {
            'head_dim': options.head_width,
            'num_experts': 4,
            'num_experts_per_tok': 2,
            'moe_intermediate_size': options.hidden // 2,
        }
        audio |= {'n_window_infer': 100, 'downsample_hidden_size': 16}
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
    sounds = transformers.WhisperFeatureExtractor(**options.sounds())
    processor = getattr(transformers, f'{name}Processor')(
        *visuals(options, vision['patch_size']), sounds, tokenizer, chat_template=chatml(content(MEDIA))
    )
    kind = getattr(transformers, f'{name}ThinkerForConditionalGeneration')
    save(options, out, kind, config, processor, CHATML_STOPS)
