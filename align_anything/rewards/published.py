"""Weights of judges under the names that other libraries published them by, as transformers' classes call them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import AfterValidator
from torch import Tensor

from align_anything.core.errors import ModelError

Weights = dict[str, Tensor]
Layers = list[tuple[Tensor, Tensor]]

OPEN_CLIP: Mapping[str, str] = MappingProxyType(
    {
        r'^visual\.proj$': 'visual_projection.weight',
        r'^visual\.class_embedding$': 'vision_model.embeddings.class_embedding',
        r'^visual\.positional_embedding$': 'vision_model.embeddings.position_embedding.weight',
        r'^visual\.conv1\.': 'vision_model.embeddings.patch_embedding.',
        r'^visual\.ln_pre\.': 'vision_model.pre_layrnorm.',
        r'^visual\.ln_post\.': 'vision_model.post_layernorm.',
        r'^visual\.transformer\.resblocks\.': 'vision_model.encoder.layers.',
        r'^text_projection$': 'text_projection.weight',
        r'^token_embedding\.': 'text_model.embeddings.token_embedding.',
        r'^positional_embedding$': 'text_model.embeddings.position_embedding.weight',
        r'^ln_final\.': 'text_model.final_layer_norm.',
        r'^transformer\.resblocks\.': 'text_model.encoder.layers.',
        r'\.ln_(\d)\.': r'.layer_norm\1.',
        r'\.attn\.': '.self_attn.',
        r'\.mlp\.c_fc\.': '.mlp.fc1.',
        r'\.mlp\.c_proj\.': '.mlp.fc2.',
    }
)
"""open_clip's names of CLIP, as patterns, and what `CLIPModel` calls the same."""
BLIP_VISION: Mapping[str, str] = MappingProxyType(
    {
        r'^cls_token$': 'embeddings.class_embedding',
        r'^pos_embed$': 'embeddings.position_embedding',
        r'^patch_embed\.proj\.': 'embeddings.patch_embedding.',
        r'^blocks\.': 'encoder.layers.',
        r'^norm\.': 'post_layernorm.',
        r'\.norm(\d)\.': r'.layer_norm\1.',
        r'\.attn\.qkv\.': '.self_attn.qkv.',
        r'\.attn\.proj\.': '.self_attn.projection.',
    }
)
"""The same of BLIP's vision transformer, and `BlipVisionModel`; its text encoder has the names of `BlipTextModel`."""


def read_weights(path: str) -> Weights:
    """Returns the tensors of a safetensors file, or of one of `torch.save`, in which no code is run, on the CPU.

    Raises ModelError for a file that is missing, damaged or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path)
    if not file.is_file():
        raise ModelError(f'{path} is no file: name the file with the weights.')
    try:
        if file.suffix == '.safetensors':
            found = load_file(file)
        else:
            found = torch.load(file, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(file))
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f'{path} is damaged, or holds something else than weights ({reason}).') from error
    named = found.get('state_dict', found) if isinstance(found, Mapping) else {}
    tensors = {str(name).removeprefix('module.'): tensor for name, tensor in named.items() if torch.is_tensor(tensor)}
    if not tensors:
        raise ModelError(f'{path} holds no weights by name.')
    return tensors


def weights_file(check: Callable[[str], Any]) -> AfterValidator:
    """Returns the check of an option that names a file of weights: `check(path)` raises ModelError where it is none."""

    def checked(path: str) -> str:
        try:
            check(path)
        except ModelError as error:
            raise ValueError(str(error)) from error
        return path

    return AfterValidator(checked)


def clip_weights(path: str) -> Weights:
    """Returns the weights of a CLIP model that open_clip saved, by the names of `CLIPModel`.

    Raises ModelError for a file with other weights.
    """
    tensors = read_weights(path)
    if 'visual.conv1.weight' not in tensors:
        raise ModelError(
            f'{path} should hold a CLIP model in the names of open_clip, such as visual.conv1.weight, but holds '
            f'{_some(tensors)}.'
        )
    # A buffer of older versions.
    tensors.pop('attn_mask', None)
    for name in ('visual.proj', 'text_projection'):
        tensors[name] = tensors[name].t()
    found = {}
    for name, tensor in renamed(tensors, OPEN_CLIP).items():
        before, is_joint, kind = name.partition('in_proj_')
        if not is_joint:
            found[name] = tensor.contiguous()
            continue
        for letter, part in zip('qkv', tensor.chunk(3), strict=True):
            found[f'{before}{letter}_proj.{kind}'] = part
    return found


def renamed(tensors: Weights, patterns: Mapping[str, str]) -> Weights:
    """Returns tensors under the names that `patterns`, each applied in order, make of theirs."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, other in patterns.items():
            name = re.sub(pattern, other, name)
        found[name] = tensor
    return found


def within(tensors: Weights, prefix: str) -> Weights:
    """Returns those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def linear_layers(tensors: Weights, path: str) -> Layers:
    """Returns weight and bias of each layer of a predictor without activations, in order, float32.

    Raises ModelError, which names `path`, where they do not lead from an embedding to one number.
    """
    names = sorted({name.rpartition('.')[0] for name in tensors}, key=_by_number)
    wanted = {'.'.join(filter(None, (name, ending))) for name in names for ending in ('weight', 'bias')}
    if wanted != set(tensors) or not names:
        raise ModelError(f'{path} should hold weight and bias of each layer, but holds {_some(tensors)}.')
    layers = [
        tuple(tensors['.'.join(filter(None, (name, end)))].float() for end in ('weight', 'bias')) for name in names
    ]
    sizes = [tuple(weight.shape) for weight, _ in layers]
    chained = all(one[:1] == other[1:] for one, other in zip(sizes, sizes[1:], strict=False))
    biased = all(weight.ndim == 2 and bias.shape == weight.shape[:1] for weight, bias in layers)
    if not (biased and chained and sizes[-1][0] == 1):
        raise ModelError(f'{path}: its layers {sizes} do not lead from an embedding to one number.')
    return layers


def through(layers: Layers, embeddings: Tensor) -> Tensor:
    """Returns the number that a predictor makes of each embedding `(N, width)`, `(N,)`."""
    for weight, bias in layers:
        embeddings = torch.nn.functional.linear(embeddings, weight, bias)
    return embeddings.squeeze(-1)


def _by_number(name: str) -> list[Any]:
    """What `layers.10` comes behind `layers.2` by."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r'(\d+)', name)]


def _some(tensors: Weights) -> str:
    names = sorted(tensors)
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
