"""Tiny Gemma 3n: images through a network of timm, audio clips through a conformer, and the text model's odd layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.testing.tiny.options import MELS, TinyOptions, save
from align_anything.testing.tiny.templates import content, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer

# timm's network, its width, and the side of an image that it makes four tokens of.
NETWORK, WIDTH, SIDE, IMAGE_TOKENS = 'test_efficientnet_ln', 256, 64, 4
AUDIO_TOKENS = 32


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Gemma 3n. Needs timm; the side of an image and the size of its network are fixed."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<pad>',
        eos='<eos>',
        bos='<bos>',
        add_bos=True,
        extra=['<start_of_turn>', '<end_of_turn>'],
        # In this order: behind the text stand two tokens of images and two of audio clips, with tables of their own.
        named={
            'boi_token': '<start_of_image>',
            'boa_token': '<start_of_audio>',
            'eoi_token': '<end_of_image>',
            'image_token': '<image_soft_token>',
            'eoa_token': '<end_of_audio>',
            'audio_token': '<audio_soft_token>',
        },
    )
    layers = max(options.layers, 4)
    text = options.decoder(
        tokenizer,
        num_hidden_layers=layers,
        head_dim=options.hidden // options.num_heads,
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
    ids = {'boi_token_id': tokenizer.boi_token_id, 'eoi_token_id': tokenizer.eoi_token_id}
    ids |= {'boa_token_id': tokenizer.boa_token_id, 'eoa_token_id': tokenizer.eoa_token_id}
    ids |= {'image_token_id': tokenizer.image_token_id, 'audio_token_id': tokenizer.audio_token_id}
    config = transformers.Gemma3nConfig(
        text_config=text,
        audio_config=audio,
        vision_config=vision,
        audio_soft_tokens_per_image=AUDIO_TOKENS,
        vision_soft_tokens_per_image=IMAGE_TOKENS,
        **ids,
    )
    sizes: dict[str, Any] = {'size': {'height': SIDE, 'width': SIDE}, 'do_normalize': False}
    processor = transformers.Gemma3nProcessor(
        transformers.Gemma3nAudioFeatureExtractor(feature_size=MELS),
        transformers.SiglipImageProcessor(**sizes),
        tokenizer,
        audio_seq_length=AUDIO_TOKENS,
        image_seq_length=IMAGE_TOKENS,
        chat_template=turns(
            '<start_of_turn>{role}\n',
            '<end_of_turn>\n',
            content({'image': '<image_soft_token>', 'audio': '<audio_soft_token>'}),
            start='{{ bos_token }}',
            roles={'assistant': 'model'},
        ),
    )
    kind = transformers.Gemma3nForConditionalGeneration
    save(options, out, lambda: kind(config), processor, ['<eos>', '<end_of_turn>'])
