"""Tiny Gemma 3n: images through a network of timm, audio clips through a conformer, and the text model's odd layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from align_anything.testing.tiny.options import MELS, TinyOptions, save
from align_anything.testing.tiny.templates import content, gemma
from align_anything.testing.tiny.tokenizers import GEMMA_STOPS, GEMMA_TURNS, make_tokenizer

# timm's network, its width, and the side of a picture that it makes four tokens of.
NETWORK, WIDTH, SIDE, PICTURE_TOKENS = 'test_efficientnet_ln', 256, 64, 4
SOUND_TOKENS = 32
# In this order: behind the text stand two tokens of pictures and two of sounds, with tables of their own.
NAMED = {
    'boi_token': '<start_of_image>',
    'boa_token': '<start_of_audio>',
    'eoi_token': '<end_of_image>',
    'image_token': '<image_soft_token>',
    'eoa_token': '<end_of_audio>',
    'audio_token': '<audio_soft_token>',
}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Gemma 3n. Needs timm; the side of a picture and the size of its network are fixed."""
    tokenizer = make_tokenizer(options.vocab, options.corpus, **GEMMA_TURNS, named=NAMED)
    layers = max(options.layers, 4)
    text = options.decoder(
        tokenizer,
        num_hidden_layers=layers,
        head_dim=options.head_width,
        intermediate_size=[2 * options.hidden] * layers,
        sliding_window=64,
        layer_types=['sliding_attention', 'full_attention'] * (layers // 2) + ['full_attention'] * (layers % 2),
        activation_sparsity_pattern=[0.5] + [0.0] * (layers - 1),
        num_kv_shared_layers=2,
        laurel_rank=8,
        hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=tokenizer.eoi_token_id,
    )
    audio = {
        'hidden_size': options.vision_hidden,
        'conf_num_attention_heads': options.vision_heads,
        'conf_num_hidden_layers': options.vision_layers,
        'sscp_conv_channel_size': [8, 8],
        'input_feat_size': MELS,
        'vocab_size': 2,
        'vocab_offset': tokenizer.eoa_token_id,
    }
    vision = {
        'architecture': NETWORK,
        'hidden_size': WIDTH,
        'vocab_size': 2,
        'vocab_offset': tokenizer.eoi_token_id,
    }
    config = transformers.Gemma3nConfig(
        text_config=text,
        audio_config=audio,
        vision_config=vision,
        audio_soft_tokens_per_image=SOUND_TOKENS,
        vision_soft_tokens_per_image=PICTURE_TOKENS,
        **{f'{name}_id': tokenizer.convert_tokens_to_ids(token) for name, token in NAMED.items()},
    )
    sizes: dict[str, Any] = {'size': {'height': SIDE, 'width': SIDE}, 'do_normalize': False}
    processor = transformers.Gemma3nProcessor(
        transformers.Gemma3nAudioFeatureExtractor(feature_size=MELS),
        transformers.SiglipImageProcessor(**sizes),
        tokenizer,
        audio_seq_length=SOUND_TOKENS,
        image_seq_length=PICTURE_TOKENS,
        chat_template=gemma(content({'image': '<image_soft_token>', 'audio': '<audio_soft_token>'})),
    )
    save(options, out, transformers.Gemma3nForConditionalGeneration, config, processor, GEMMA_STOPS)
