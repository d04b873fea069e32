"""Media, and folders, for tests of codecs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from align_anything.core.errors import ModelError
from align_anything.core.types import Audio
from align_anything.models.codecs.base import codec_rules

SIDE = 32


def picture(height: int = SIDE, width: int = SIDE, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def sound(rate: int, samples: int, seed: int = 0) -> Audio:
    values = np.random.default_rng(seed).normal(size=samples).clip(-3, 3) / 6
    return Audio(values.astype(np.float32), rate)


def tone(pitch: float, rate: int = 8000, seconds: float = 0.2) -> Audio:
    return Audio(np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate).astype(np.float32) * 0.5, rate)


def changed(folder: Path, out: Path, **config: Any) -> Path:
    """A copy of a codec with other settings."""
    shutil.copytree(folder, out)
    settings = json.loads((out / 'config.json').read_text())
    (out / 'config.json').write_text(json.dumps({**settings, **config}))
    return out


def released_decoder(vq: Mapping[str, Any]) -> dict[str, Tensor]:
    """Random weights of a decoder for the network of a Chameleon, with the names that they were released with."""
    shape = ('base_channels', 'channel_multiplier', 'num_res_blocks', 'latent_channels')
    # Its class is built alike, but for attention and the order of the levels.
    config = transformers.JanusVQVAEConfig(**{name: vq[name] for name in shape})
    torch.manual_seed(3)
    return {
        name_as_released(name, len(config.channel_multiplier)): torch.randn_like(value) * 0.1
        for name, value in JanusVQVAEDecoder(config).state_dict().items()
        if '.attn.' not in name
    }


def name_as_released(name: str, levels: int) -> str:
    """The name that a weight of the decoder of Chameleon was released with; or the other way round."""
    return re.sub(r'^up\.(\d)', lambda found: f'up.{levels - 1 - int(found[1])}', name)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        codec_rules(folder).open()
