"""Tiny encoders of media, as the parts that composed models are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from align_anything.core.errors import ModelError
from align_anything.core.registry import nearest

SIDE, PATCH = 56, 14
WIDTH, LAYERS, HEADS = 32, 2, 2
RATE = 16000
SECONDS = 2
MELS = 32
FRAMES = 4
SHAPE: dict[str, Any] = {
    'hidden_size': WIDTH,
    'intermediate_size': 2 * WIDTH,
    'num_hidden_layers': LAYERS,
    'num_attention_heads': HEADS,
}
SQUARE: dict[str, Any] = {**SHAPE, 'image_size': SIDE, 'patch_size': PATCH}
# Without its own dropout an encoder is the same in training, so that two ways of computing can be compared.
STILL: dict[str, float] = dict.fromkeys(('hidden_dropout', 'attention_dropout', 'activation_dropout'), 0.0)
WAVE: dict[str, Any] = {
    **SHAPE,
    **STILL,
    'feat_proj_dropout': 0.0,
    'final_dropout': 0.0,
    'conv_dim': (16, 16, 16),
    'conv_kernel': (10, 3, 16),
    'conv_stride': (5, 4, 16),
    'num_feat_extract_layers': 3,
    'num_conv_pos_embeddings': 16,
    'num_conv_pos_embedding_groups': 2,
}
"""Fifty features a second, as the large ones make."""
LIKE_LARGE: dict[str, Any] = {'feat_extract_norm': 'layer', 'do_stable_layer_norm': True}


def _clip() -> Any:
    text = {**SHAPE, 'vocab_size': 16, 'max_position_embeddings': 8, 'eos_token_id': 1, 'bos_token_id': 0}
    config = transformers.CLIPConfig(vision_config=SQUARE, text_config=text, projection_dim=WIDTH)
    return transformers.CLIPModel, config


def _siglip() -> Any:
    return transformers.SiglipVisionModel, transformers.SiglipVisionConfig(**SQUARE)


def _vit() -> Any:
    still = {'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}
    return transformers.ViTModel, transformers.ViTConfig(**SQUARE, **still)


def _dinov2() -> Any:
    square = {key: value for key, value in SQUARE.items() if key != 'intermediate_size'}
    return transformers.Dinov2Model, transformers.Dinov2Config(**square, mlp_ratio=2)


def _dinov2_with_registers() -> Any:
    square = {key: value for key, value in SQUARE.items() if key != 'intermediate_size'}
    config = transformers.Dinov2WithRegistersConfig(**square, mlp_ratio=2, num_register_tokens=2)
    return transformers.Dinov2WithRegistersModel, config


def _videomae() -> Any:
    config = transformers.VideoMAEConfig(
        **SQUARE,
        num_frames=FRAMES,
        tubelet_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_mean_pooling=False,
    )
    return transformers.VideoMAEModel, config


def _wav2vec2() -> Any:
    return transformers.Wav2Vec2Model, transformers.Wav2Vec2Config(**WAVE)


def _wavlm() -> Any:
    return transformers.WavLMModel, transformers.WavLMConfig(**WAVE, **LIKE_LARGE)


def _hubert() -> Any:
    return transformers.HubertModel, transformers.HubertConfig(**WAVE, **LIKE_LARGE)


def _whisper() -> Any:
    config = transformers.WhisperConfig(
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=2 * WIDTH,
        decoder_layers=1,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=WIDTH,
        num_mel_bins=MELS,
        max_source_positions=50 * SECONDS,
        vocab_size=16,
        dropout=0.0,
        **dict.fromkeys(('pad_token_id', 'bos_token_id'), 0),
        **dict.fromkeys(('eos_token_id', 'decoder_start_token_id'), 1),
    )
    return transformers.WhisperModel, config


def _clap(fused: bool = False) -> Any:
    audio = {
        'spec_size': 64,
        'num_mel_bins': 16,
        'window_size': 2,
        'depths': [1, 1],
        'num_attention_heads': [2, 2],
        'num_hidden_layers': 2,
        'patch_embeds_hidden_size': 16,
        'hidden_size': 32,
        'drop_path_rate': 0.0,
        'enable_fusion': fused,
        'patch_size': 4,
        'patch_stride': [4, 4],
    }
    config = transformers.ClapConfig(audio_config=audio, text_config={**SHAPE, 'vocab_size': 16}, projection_dim=WIDTH)
    return transformers.ClapModel, config


def _clap_fused() -> Any:
    return _clap(fused=True)


def _images() -> Any:
    size = {'height': SIDE, 'width': SIDE}
    return transformers.CLIPImageProcessor(size={'shortest_edge': SIDE}, crop_size=size)


def _squares() -> Any:
    return transformers.SiglipImageProcessor(size={'height': SIDE, 'width': SIDE})


def _clips() -> Any:
    size = {'height': SIDE, 'width': SIDE}
    return transformers.VideoMAEImageProcessor(size={'shortest_edge': SIDE}, crop_size=size)


def _waves() -> Any:
    return transformers.Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=RATE, return_attention_mask=True)


def _mels() -> Any:
    return transformers.WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS, sampling_rate=RATE)


def _spectra(truncation: str = 'rand_trunc') -> Any:
    return transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=128,
        max_length_s=SECONDS,
        fft_window_size=512,
        frequency_max=7000,
        truncation=truncation,
    )


def _fused_spectra() -> Any:
    return _spectra('fusion')


ENCODERS = {
    'clip': (_clip, _images),
    'siglip': (_siglip, _squares),
    'vit': (_vit, _squares),
    'dinov2': (_dinov2, _images),
    'dinov2_with_registers': (_dinov2_with_registers, _images),
    'videomae': (_videomae, _clips),
    'wav2vec2': (_wav2vec2, _waves),
    'wavlm': (_wavlm, _waves),
    'hubert': (_hubert, _waves),
    'whisper': (_whisper, _mels),
    'clap': (_clap, _spectra),
    'clap_fused': (_clap_fused, _fused_spectra),
}
"""The model and the processor of each."""


def build_encoder(name: str, out: str | Path, seed: int = 0) -> Path:
    """Writes a tiny encoder with its processor into `out` and returns that folder. Raises ModelError for no such one.

    Encoders of waves are like the base ones (`wav2vec2`), or like the large ones, with other norms (`wavlm`, `hubert`).
    """
    if name not in ENCODERS:
        raise ModelError(f"no tiny encoder '{name}'.{nearest(name, list(ENCODERS))} Known: {', '.join(ENCODERS)}.")
    make_model, make_processor = ENCODERS[name]
    kind, config = make_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.save_pretrained(out)
    make_processor().save_pretrained(out)
    return Path(out)
