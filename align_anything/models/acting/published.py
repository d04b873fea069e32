"""Published SPOC checkpoints: from the file of a training in PyTorch Lightning to a checkpoint of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import FOREIGN_FAULTS, ModelError
from align_anything.core.registry import nearest
from align_anything.models.acting.checkpoint import make_checkpoint
from align_anything.models.acting.configuration import SpocConfig
from align_anything.models.acting.spoc import SpocModel

PREFIX = 'model.'
CAMERAS = ('raw_navigation_camera', 'raw_manipulation_camera')
IN_HAND = 'an_object_is_in_hand'
ACTIONS = (
    *('move_ahead', 'rotate_right', 'rotate_left', 'move_back', 'done', 'sub_done'),
    *('rotate_left_small', 'rotate_right_small', 'pickup'),
    *('move_arm_in', 'move_arm_out', 'move_arm_up', 'move_arm_down', 'wrist_open', 'wrist_close'),
    *('move_arm_down_small', 'move_arm_in_small', 'move_arm_out_small', 'move_arm_up_small', 'dropoff'),
)
"""The twenty actions of the Stretch robot in CHORES, in the order of the logits."""
DINOV2: Mapping[str, dict[str, int]] = {
    'small': {'hidden_size': 384, 'num_attention_heads': 6},
    'base': {'hidden_size': 768, 'num_attention_heads': 12},
}
VERSIONS: Mapping[str, tuple[str, int, int]] = {
    'small': ('small', 3, 512),
    'small_3': ('small', 3, 512),
    'small_6': ('small', 6, 512),
    'base_3': ('base', 3, 512),
    'base_6': ('base', 6, 768),
}
"""Of each published version the DINOv2, the layers of fusion and decoder, and their size."""

IMAGE, TEXT = 'visual_encoder.image_encoder.', 'visual_encoder.text_encoder.'
LEFT_OUT = 'time_encoder.'
RENAMES = (
    (rf'^{re.escape(IMAGE)}model\.cls_token$', f'{IMAGE}embeddings.cls_token'),
    (rf'^{re.escape(IMAGE)}model\.mask_token$', f'{IMAGE}embeddings.mask_token'),
    (rf'^{re.escape(IMAGE)}model\.pos_embed$', f'{IMAGE}embeddings.position_embeddings'),
    (rf'^{re.escape(IMAGE)}model\.patch_embed\.proj\.', f'{IMAGE}embeddings.patch_embeddings.projection.'),
    (rf'^{re.escape(IMAGE)}model\.norm\.', f'{IMAGE}layernorm.'),
    (rf'^{re.escape(IMAGE)}model\.blocks\.(\d+)\.attn\.proj\.', rf'{IMAGE}encoder.layer.\1.attention.output.dense.'),
    (rf'^{re.escape(IMAGE)}model\.blocks\.(\d+)\.ls(\d)\.gamma$', rf'{IMAGE}encoder.layer.\1.layer_scale\2.lambda1'),
    (rf'^{re.escape(IMAGE)}model\.blocks\.(\d+)\.', rf'{IMAGE}encoder.layer.\1.'),
    (rf'^{re.escape(TEXT)}shared\.', f'{TEXT}embed_tokens.'),
    (rf'^{re.escape(TEXT)}encoder\.', TEXT),
    (r'^visual_encoder\.fusion_xformer\.layers\.', 'visual_encoder.fusion_xformer.'),
    (r'^object_in_hand_embed\.', f'sensor_embed.{IN_HAND}.'),
    (r'^actor\.linear\.', 'actor.'),
)
"""What parts of names become, the first that fits."""
JOINED = (
    (r'\.self_attn\.in_proj_(weight|bias)$', '.self_attn.{}_proj.{}', ('q', 'k', 'v')),
    (
        rf'^{re.escape(IMAGE)}encoder\.layer\.(?P<layer>\d+)\.attn\.qkv\.(weight|bias)$',
        IMAGE + 'encoder.layer.{layer}.attention.attention.{}.{}',
        ('query', 'key', 'value'),
    ),
)
"""Weights of three layers in one, and the names of the three."""


def convert_published(file: str | Path, out: str | Path, version: str, tokenizer: str = 't5-small') -> Path:
    """Writes what a published file holds as a checkpoint into `out`, and returns that folder.

    Args:
        file: a `.ckpt`; nothing in it is run, it holds tensors and plain values or is refused.
        version: what its name says: one of `VERSIONS`.
        tokenizer: of goals, a folder or a name of the hub.

    Raises ModelError for a file that is none, and for weights that are not those of the version.
    """
    state = dict(renamed(_read(file)))
    config = SpocConfig(**_config(version, IN_HAND in {name.split('.')[1] for name in state if '.' in name}))
    model = SpocModel(config)
    own = model.state_dict()
    found = {
        'missing': [name for name in own if name not in state],
        'strange': [name for name in state if name not in own],
        'of another size': [name for name in own if name in state and own[name].shape != state[name].shape],
    }
    if any(found.values()):
        told = (f'{len(names)} are {what} ({", ".join(names[:4])})' for what, names in found.items() if names)
        raise ModelError(f'{file} is no {version}: of its weights {", ".join(told)}. Versions: {", ".join(VERSIONS)}.')
    model.load_state_dict(state)
    space = ActionSpace(names=ACTIONS, cameras=CAMERAS)
    return make_checkpoint(out, model, AutoTokenizer.from_pretrained(tokenizer), space)


def problems_of_version(config: Any, version: str) -> list[str]:
    """Returns what keeps the configuration of a checkpoint from being that of a published version, in words.

    Raises ModelError for a version that there is not.
    """
    wanted = _config(version, senses=False)
    if config.model_type != SpocConfig.model_type:
        return [f'it is a {config.model_type}, and versions are those of {SpocConfig.model_type}']
    names = ('hidden_size', 'fusion_layers', 'decoder_layers', 'decoder_size')
    pairs = {name: (getattr(config, name), wanted[name]) for name in names}
    encoder = config.vision_config
    size = wanted['vision_config']['hidden_size']
    pairs['vision_config.hidden_size'] = None if encoder is None else encoder.hidden_size, size
    return [
        f'{name} is {own}, and that of {version} is {other}' for name, (own, other) in pairs.items() if own != other
    ]


def renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights of a published file under the names that they have here."""
    cameras = {}
    for name, tensor in state.items():
        if name.startswith(LEFT_OUT) or name == f'{TEXT}encoder.embed_tokens.weight':
            continue
        sensor = re.fullmatch(r'visual_encoder\.visual_sensor_token_(\w+)', name)
        if sensor is not None:
            cameras[sensor[1]] = tensor
            continue
        yield from _apart(_name(name), tensor)
    if cameras.keys() == {*CAMERAS} and len({tensor.shape for tensor in cameras.values()}) == 1:
        yield 'visual_encoder.camera_tokens', torch.stack([cameras[name] for name in CAMERAS])
    else:
        yield from ((f'visual_encoder.visual_sensor_token_{name}', tensor) for name, tensor in cameras.items())


def _name(name: str) -> str:
    for found, wanted in RENAMES:
        changed = re.sub(found, wanted, name)
        if changed != name:
            return changed
    return name


def _apart(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    for found, wanted, parts in JOINED:
        match = re.search(found, name)
        if match is not None and tensor.ndim and len(tensor) % len(parts) == 0:
            whole = match.groupdict()
            for part, piece in zip(parts, tensor.chunk(3), strict=True):
                end = wanted.format(part, match[match.lastindex], **whole)
                yield (end if whole else name[: match.start()] + end), piece.clone()
            return
    yield name, tensor


def _config(version: str, senses: bool) -> dict[str, Any]:
    if version not in VERSIONS:
        raise ModelError(
            f"there is no version '{version}'.{nearest(version, list(VERSIONS))} Versions are: {', '.join(VERSIONS)}. "
            'Those with SigLIP come with another text encoder, which is not converted.'
        )
    encoder, layers, size = VERSIONS[version]
    return {
        'vision_config': {'model_type': 'dinov2', 'image_size': 518, 'patch_size': 14, **DINOV2[encoder]},
        'text_config': {'model_type': 't5', 'd_model': 512, 'd_kv': 64, 'd_ff': 2048, 'num_layers': 6, 'num_heads': 8},
        'hidden_size': size,
        'channels': size,
        'fusion_layers': layers,
        'decoder_layers': layers,
        # Two thirds of four times the size, up to the next multiple of 256.
        'decoder_size': -(-int(8 * size / 3) // 256) * 256,
        'sensors': {IN_HAND: 3} if senses else {},
    }


def _read(file: str | Path) -> dict[str, Tensor]:
    try:
        held = torch.load(file, map_location='cpu', weights_only=True)
    except FOREIGN_FAULTS as error:  # whatever bytes there are, the reader stumbles over them in its own way
        raise ModelError(
            f'{file} cannot be read as tensors and plain values, and nothing else in it is run: '
            f'{type(error).__name__}: {error}'
        ) from error
    state = held.get('state_dict') if isinstance(held, Mapping) else None
    if not isinstance(state, Mapping):
        raise ModelError(f"{file} has no 'state_dict': it is no checkpoint of PyTorch Lightning.")
    named = {str(name): tensor for name, tensor in state.items()}
    plain = [name for name, tensor in named.items() if not isinstance(tensor, Tensor)]
    if plain:
        raise ModelError(f"{file}: '{plain[0]}' of its 'state_dict' is no tensor.")
    return {name.removeprefix(PREFIX): tensor for name, tensor in named.items() if name.startswith(PREFIX)}
