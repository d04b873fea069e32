"""Tiny codecs: code books learned by k-means from a handful of media, and untrained networks of the real classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.core.registry import nearest
from align_anything.core.types import Audio
from align_anything.models.codecs import patch_codebook, spectrum_codebook
from align_anything.models.codecs.base import CONFIG

ENTRIES = 32
SIDE = 32
"""Height and width in pixels of the pictures of tiny networks that know one size."""
SHAPE: dict[str, Any] = {'base_channels': 32, 'channel_multiplier': [1, 1, 1], 'num_res_blocks': 1}
LAYERS: dict[str, Any] = {'intermediate_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 2}
# Networks of speech take 320 samples a frame, as the real ones do: their codecs count on it.
HUBERT: dict[str, Any] = {
    **LAYERS,
    'model_type': 'hubert',
    'hidden_size': 16,
    'conv_dim': [8] * 7,
    'num_conv_pos_embeddings': 4,
    'num_conv_pos_embedding_groups': 2,
}
SCALAR: dict[str, Any] = {
    **LAYERS,
    'hidden_size': 64,
    'num_key_value_heads': 2,
    'head_dim': 32,
    'encoder_hidden_size': 4,
    'semantic_model_config': {
        **LAYERS,
        'model_type': 'wav2vec2-bert',
        'hidden_size': 16,
        'feature_projection_input_dim': 160,
    },
    'quantization_dim': 80,
    'quantization_levels': [4, 4, 2],
}
SPREAD = {'codebook.embed': 0.02, 'codebook.embed_sum': 0.02, 'project_in.weight': 500.0}
"""Endings of the names of books, and of what is quantized without one, and the size of their values.

As they begin, every sound or picture is nearest to the same few entries.
"""
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    'emu3_vqgan': (
        'Emu3VQVAE',
        {**SHAPE, 'codebook_size': ENTRIES, 'attn_resolutions': [2], 'hidden_size': 32, 'size': [SIDE, SIDE]},
    ),
    'janus_vqgan': (
        'JanusVQVAE',
        {**SHAPE, 'num_embeddings': ENTRIES, 'latent_channels': 16, 'num_patches': SIDE // 4},
    ),
    'chameleon_vqgan': (
        'ChameleonVQVAE',
        {**SHAPE, 'num_embeddings': ENTRIES, 'latent_channels': 16, 'embed_dim': 8, 'resolution': SIDE},
    ),
    'mimi': (
        'MimiModel',
        {
            **LAYERS,
            'sampling_rate': 8000,
            'hidden_size': 32,
            'num_key_value_heads': 2,
            'head_dim': 16,
            'num_filters': 4,
            'upsampling_ratios': [5, 4],
            'codebook_size': ENTRIES,
            'codebook_dim': 16,
            'vector_quantization_hidden_dimension': 16,
            'num_quantizers': 4,
            'upsample_groups': 32,
        },
    ),
    'dac': (
        'DacModel',
        {
            'sampling_rate': 8000,
            'encoder_hidden_size': 4,
            'decoder_hidden_size': 16,
            'downsampling_ratios': [2, 4],
            'n_codebooks': 3,
            'codebook_size': ENTRIES,
            'codebook_dim': 4,
        },
    ),
    'encodec': (
        'EncodecModel',
        {
            'sampling_rate': 8000,
            'num_filters': 4,
            'hidden_size': 16,
            'upsampling_ratios': [5, 4],
            'codebook_size': ENTRIES,
            'target_bandwidths': [4.0, 8.0],
            'num_lstm_layers': 1,
        },
    ),
    'xcodec': (
        'XcodecModel',
        {
            'acoustic_model_config': {'model_type': 'dac', 'encoder_hidden_size': 4, 'decoder_hidden_size': 64},
            'semantic_model_config': HUBERT,
            'codebook_size': ENTRIES,
            'target_bandwidths': [0.25, 0.5],
        },
    ),
    'higgs_audio_v2_tokenizer': (
        'HiggsAudioV2TokenizerModel',
        {
            'acoustic_model_config': {
                'model_type': 'dac',
                'encoder_hidden_size': 4,
                'decoder_hidden_size': 64,
                'downsampling_ratios': [8, 5, 4, 2, 3],
                'upsampling_ratios': [8, 5, 4, 2, 3],
            },
            'semantic_model_config': HUBERT,
            'codebook_size': ENTRIES,
            'codebook_dim': 16,
            'target_bandwidths': [0.125, 0.25],
        },
    ),
    'xcodec2': ('Xcodec2Model', SCALAR),
    'neucodec': ('NeuCodecModel', SCALAR),
}
"""Codecs by the type that their configuration has: their class in transformers, and a tiny configuration."""


def make_codec(model_type: str, out: str | Path, seed: int = 0) -> Path:
    """Writes an untrained codec of a real class into `out`, and returns that folder.

    `model_type` is one of `CLASSES`, or `VQModel`, for which diffusers is needed. Raises ModelError for another.
    """
    out = Path(out)
    torch.manual_seed(seed)
    network = _network(model_type)
    for name, tensor in network.state_dict().items():
        for ending, size in SPREAD.items():
            if name.endswith(ending):
                tensor.normal_().mul_(size)
    network.save_pretrained(out)
    return out


def _network(model_type: str) -> Any:
    if model_type == 'VQModel':
        from diffusers import VQModel

        network = VQModel(
            down_block_types=['DownEncoderBlock2D'] * 2,
            up_block_types=['UpDecoderBlock2D'] * 2,
            block_out_channels=[32, 32],
            sample_size=SIDE,
            num_vq_embeddings=ENTRIES,
        )
        torch.nn.init.normal_(network.quantize.embedding.weight, std=0.5)
        return network
    if model_type not in CLASSES:
        hint = nearest(model_type, [*CLASSES, 'VQModel'])
        raise ModelError(f"no tiny codec of the type '{model_type}'.{hint} Known: {', '.join([*CLASSES, 'VQModel'])}.")
    name, config = CLASSES[model_type]
    kind = getattr(transformers, name)
    return kind(kind.config_class.from_dict(deepcopy(config)))


def make_patch_codebook(
    out: str | Path, images: Sequence[Image.Image], *, size: tuple[int, int], patch: int, entries: int, seed: int = 0
) -> Path:
    """Writes a `patch_codebook` learned from `images` into `out`, and returns that folder.

    `size` is the height and width in pixels that pictures are scaled to. Needs scikit-learn.
    """
    patches = [patch_codebook.patches_of(image, size, patch).flatten(0, 1) for image in images]
    book, _ = _learned(torch.cat(patches), entries, seed)
    config = {'model_type': 'patch_codebook', 'codebook_size': entries, 'patch_size': patch, 'size': list(size)}
    return _write(Path(out), config, patch_codebook.WEIGHTS, {patch_codebook.BOOK: book})


def make_spectrum_codebook(
    out: str | Path,
    sounds: Sequence[Audio],
    *,
    entries: int,
    frame: int = 200,
    bins: int = 40,
    books: int = 1,
    seed: int = 0,
) -> Path:
    """Writes a `spectrum_codebook` learned from `sounds` of one rate into `out`, and returns that folder.

    `frame` is the length of a frame in samples, `bins` how many frequencies from 0 are looked at, each `rate / frame`
    Hz wide; each of the `books` is learned from what the ones before it left over. Needs scikit-learn.
    """
    rest = torch.cat([spectrum_codebook.spectra_of(sound.samples, frame, bins) for sound in sounds])
    learned = []
    for _ in range(books):
        book, codes = _learned(rest, entries, seed)
        learned.append(book)
        rest = rest - book[codes]
    config = {
        'model_type': 'spectrum_codebook',
        'codebook_size': entries,
        'num_quantizers': books,
        'frame_size': frame,
        'bins': bins,
        'sampling_rate': sounds[0].rate,
    }
    return _write(Path(out), config, spectrum_codebook.WEIGHTS, {spectrum_codebook.BOOK: torch.stack(learned)})


def _learned(points: Tensor, entries: int, seed: int) -> tuple[Tensor, Tensor]:
    """The centres of `points` `(points, features)`, float32, and the nearest one of each point."""
    from sklearn.cluster import KMeans

    means = KMeans(entries, n_init=1, random_state=seed).fit(points.numpy())
    return torch.from_numpy(means.cluster_centers_).float(), torch.from_numpy(means.labels_).long()


def _write(folder: Path, config: dict[str, Any], weights: str, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding='utf-8')
    save_file(tensors, folder / weights)
    return folder
