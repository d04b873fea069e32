"""From the pictures of a step and the goal to one vector."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedConfig

from align_anything.models.acting.configuration import SpocConfig
from align_anything.models.acting.layers import FusionLayer


class VisualEncoder(nn.Module):
    """Fuses pictures with the goal. Encoders that come trained are frozen, and compute without a graph."""

    def __init__(self, config: SpocConfig) -> None:
        super().__init__()
        self.config = config
        size, channels = config.hidden_size, config.channels
        if config.vision_config is not None:
            self.image_encoder = _frozen(AutoModel.from_config(config.vision_config))
            read, first, second = config.vision_config.hidden_size, {'kernel_size': 1}, {'kernel_size': 1}
        else:
            read, first = 3, {'kernel_size': config.patch_size, 'stride': config.patch_size}
            second = {'kernel_size': 3, 'padding': 1}
        self.visual_compressor = nn.Sequential(
            nn.Conv2d(read, channels, **first), nn.ReLU(), nn.Conv2d(channels, channels, **second), nn.ReLU()
        )
        if config.text_config is None:
            self.text_encoder: nn.Module = nn.Embedding(config.vocab_size, config.text_size)
            text_size = config.text_size
        else:
            self.text_encoder = _frozen(_text_encoder(config.text_config))
            text_size = config.text_config.hidden_size
        if config.fusion == 'film':
            height, width = config.maps
            self.film = nn.Linear(config.goal_length * text_size, 4 * channels)
            self.joined = nn.Linear(config.cameras * channels * height * width, size)
            return
        self.visual_adapter = _adapter(channels, size)
        self.text_adapter = _adapter(text_size, size)
        self.fusion_token = nn.Parameter(0.1 * torch.rand(size))
        self.camera_tokens = nn.Parameter(0.1 * torch.rand(config.cameras, size))
        if config.vision_config is None:
            # What trained encoders know of where a patch lies.
            self.patch_tokens = nn.Parameter(0.1 * torch.rand(config.maps[0] * config.maps[1], size))
        self.fusion_xformer = nn.ModuleList(
            FusionLayer(size, config.fusion_heads, config.fusion_size, config.dropout)
            for _ in range(config.fusion_layers)
        )

    def forward(self, frames: Tensor, goals: Tensor, goal_mask: Tensor, goal_of: Tensor) -> Tensor:
        """Returns one vector of each step, `(steps, size)`.

        Args:
            frames: pictures of each step, `(steps, cameras, 3, height, width)` uint8.
            goals: token ids of each goal, `(goals, length)`; `goal_mask` is false where they are filled up.
            goal_of: the goal of each step, `(steps,)`.
        """
        words = self._words(goals, goal_mask)
        maps = self._maps(frames.flatten(0, 1), words.dtype)
        fuse = self._scaled if self.config.fusion == 'film' else self._attended
        return fuse(maps, words, goal_mask, goal_of)

    def _words(self, goals: Tensor, mask: Tensor) -> Tensor:
        if self.config.text_config is None:
            return self.text_encoder(goals)
        with _graph_if_it_trains(self.text_encoder):
            return self.text_encoder(input_ids=goals, attention_mask=mask.long()).last_hidden_state

    def _maps(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        """Features of each picture, `(pictures, channels, height, width)`; its normalised pixels without an encoder."""
        config = self.config
        mean, std = (
            torch.tensor(own, dtype=dtype, device=pictures.device)[:, None, None]
            for own in (config.image_mean, config.image_std)
        )
        pixels = (pictures.to(dtype) / 255 - mean) / std
        if config.vision_config is None:
            return pixels
        patch = config.vision_config.patch_size
        height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        top, left = (pixels.shape[-2] - height * patch) // 2, (pixels.shape[-1] - width * patch) // 2
        pixels = pixels[..., top : top + height * patch, left : left + width * patch]
        with _graph_if_it_trains(self.image_encoder):
            # Pictures of another size than the encoder was trained at.
            tokens = self.image_encoder(
                pixel_values=pixels,
                **({} if config.vision == 'dinov2' else {'interpolate_pos_encoding': True}),
            ).last_hidden_state
        # In front stand the class token and registers.
        patches = tokens[:, tokens.shape[1] - height * width :]
        return functional.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, (height, width)), tuple(config.grid))

    def _scaled(self, maps: Tensor, words: Tensor, mask: Tensor, goal_of: Tensor) -> Tensor:
        film = self.film((words * mask[..., None]).flatten(1)).index_select(0, goal_of)
        scales = film.repeat_interleave(self.config.cameras, 0)[:, :, None, None].chunk(4, 1)
        for layer, scale, shift in ((0, *scales[:2]), (2, *scales[2:])):
            maps = functional.relu(self.visual_compressor[layer](maps) * (1 + scale) + shift)
        return self.joined(maps.unflatten(0, (-1, self.config.cameras)).flatten(1))

    def _attended(self, maps: Tensor, words: Tensor, mask: Tensor, goal_of: Tensor) -> Tensor:
        patches = self.visual_adapter(self.visual_compressor(maps).flatten(2).transpose(1, 2))
        if self.config.vision_config is None:
            patches = patches + self.patch_tokens
        patches = patches.unflatten(0, (-1, self.config.cameras)) + self.camera_tokens[:, None]
        patches, texts = patches.flatten(1, 2), self.text_adapter(words).index_select(0, goal_of)
        token = self.fusion_token.expand(len(patches), 1, -1)
        hidden = torch.cat([token, patches, texts], 1)
        seen = mask.new_ones(len(patches), 1 + patches.shape[1])
        seen = torch.cat([seen, mask.index_select(0, goal_of)], 1)
        for layer in self.fusion_xformer:
            hidden = layer(hidden, seen)
        return hidden[:, 0]


def _adapter(read: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(read, size), nn.LayerNorm(size), nn.ReLU())


def _text_encoder(config: PreTrainedConfig) -> nn.Module:
    from transformers import SiglipTextModel, T5EncoderModel

    if config.model_type == 't5':
        # The encoder inside, whose embedding has one name.
        return T5EncoderModel._from_config(config).encoder
    return SiglipTextModel._from_config(config)


def _frozen(encoder: nn.Module) -> nn.Module:
    return encoder.requires_grad_(False)


def _graph_if_it_trains(encoder: nn.Module) -> nullcontext[None] | torch.no_grad:
    trains = any(parameter.requires_grad for parameter in encoder.parameters())
    return nullcontext() if trains else torch.no_grad()
