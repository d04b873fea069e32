"""How well people would like a picture for a text, by ImageReward."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.rewards.base import Completion, Values, register_reward, text_asked_for
from align_anything.rewards.frozen import Device, device_of
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of
from align_anything.rewards.published import (
    BLIP_VISION,
    Layers,
    Weights,
    linear_layers,
    read_weights,
    renamed,
    through,
    weights_file,
    within,
)

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the scores of the published model, which are brought to mean 0 and deviation 1."""
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENS = 35
"""Of the longest text."""
HEAD_SIZE = 64
"""Width of each attention head in BLIP, whatever its size."""


class Parts(NamedTuple):
    """The weights of each part, by transformers' names."""

    vision: Weights
    text: Weights
    head: Layers


def parts_of(path: str) -> Parts:
    """Returns what is in a file of ImageReward. Raises ModelError for a file with something else."""
    tensors = read_weights(path)
    parts = [within(tensors, f'{name}.') for name in ('blip.visual_encoder', 'blip.text_encoder', 'mlp.layers')]
    if not all(parts):
        raise ModelError(
            f'{path} should hold ImageReward (blip.visual_encoder, blip.text_encoder, mlp.layers), but holds '
            f'{", ".join(sorted({name.rpartition(".")[0].split(".")[0] for name in tensors})[:5])}.'
        )
    vision, text, head = parts
    text.pop('embeddings.position_ids', None)  # a buffer
    return Parts(renamed(vision, BLIP_VISION), text, linear_layers(head, path))


@register_reward('image_reward', reads=PICTURES)
def image_reward(
    completions: Sequence[Completion],
    *,
    weights: Annotated[str, weights_file(parts_of)],
    tokenizer: str,
    column: str | None = None,
    device: Device = None,
    batch_size: PositiveInt = 32,
    missing: Missing = 0.0,
) -> Values:
    """What ImageReward gives to a picture and the text that asked for it, about -2 to 2.

    Xu et al., 2023, arXiv:2304.05977: BLIP reads the text while it looks at the picture, linear layers score what it
    makes of the first token, and the score is brought to the mean and the deviation of the published model's.

    Args:
        completions: the responses.
        weights: file of the model, such as `ImageReward.pt`.
        tokenizer: checkpoint with the tokenizer that it reads with, BERT's: `bert-base-uncased`.
        column: column of the row with the text; None is the text of the last user turn. What is longer than 35 tokens
            is cut.
        device: where the model runs; None is the device of this rank.
        batch_size: pictures in one pass.
        missing: reward of a response without a picture; None abstains.

    Raises:
        RewardError: a row has no text.
        ModelError: the weights are not those of such a model, or the tokenizer is not its own.
    """

    def scores(pictures: list[Any], owners: list[Completion]) -> list[float]:
        blip = _blip(weights, tokenizer, device_of(device))
        texts = [text_asked_for(owner, column) for owner in owners]
        found = [
            blip(pictures[start : start + batch_size], texts[start : start + batch_size])
            for start in range(0, len(pictures), batch_size)
        ]
        return ((torch.cat(found) - MEAN) / STD).tolist()

    return mean_by_response(completions, pictures_of, scores, missing)


class Blip(NamedTuple):
    """A text encoder that looks at pictures, with what scores its states."""

    vision: Any
    text: Any
    head: Layers
    tokenizer: Any

    def __call__(self, pictures: Sequence[Any], texts: Sequence[str]) -> Tensor:
        """Returns the score of each picture for its text, `(pictures,)` on the CPU."""
        side, device = self.vision.config.image_size, self.vision.device
        pixels = torch.stack([cropped(picture, side) for picture in pictures]).to(device)
        how = {'padding': True, 'truncation': True, 'max_length': TOKENS, 'return_tensors': 'pt'}
        read = self.tokenizer(list(texts), **how).to(device)
        with torch.inference_mode():
            seen = self.vision(pixels).last_hidden_state
            states = self.text(
                read['input_ids'], attention_mask=read['attention_mask'], encoder_hidden_states=seen
            ).last_hidden_state
        return through(self.head, states[:, 0].cpu())


@functools.cache
def _blip(weights: str, tokenizer: str, device: str) -> Blip:
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    from align_anything.models.complete import load_complete, load_tokenizer

    vision, text, head = parts_of(weights)
    words = load_tokenizer(tokenizer)
    patches, embedded = vision['embeddings.patch_embedding.weight'], text['embeddings.word_embeddings.weight']
    if len(words) > len(embedded):
        raise ModelError(
            f'{tokenizer} has {len(words)} tokens, and {weights} reads {len(embedded)}: name the tokenizer of '
            'bert-base-uncased.'
        )
    positions = vision['embeddings.position_embedding'].shape[1] - 1
    looks = BlipVisionConfig(
        hidden_size=len(patches),
        intermediate_size=len(vision['encoder.layers.0.mlp.fc1.weight']),
        num_hidden_layers=_depth(vision, 'encoder.layers'),
        num_attention_heads=len(patches) // HEAD_SIZE,
        image_size=round(positions**0.5) * patches.shape[-1],
        patch_size=patches.shape[-1],
        layer_norm_eps=1e-6,
    )
    reads = BlipTextConfig(
        vocab_size=len(embedded),
        hidden_size=embedded.shape[1],
        encoder_hidden_size=len(patches),
        intermediate_size=len(text['encoder.layer.0.intermediate.dense.weight']),
        num_hidden_layers=_depth(text, 'encoder.layer'),
        num_attention_heads=embedded.shape[1] // HEAD_SIZE,
        max_position_embeddings=len(text['embeddings.position_embeddings.weight']),
    )
    models = (
        load_complete(BlipVisionModel, weights, torch.float32, config=looks, weights=vision),
        load_complete(BlipTextModel, weights, torch.float32, config=reads, weights=text, add_pooling_layer=False),
    )
    return Blip(*(model.to(device).eval().requires_grad_(False) for model in models), head, words)


def _depth(tensors: Weights, layers: str) -> int:
    """How many layers there are."""
    return len({name.partition('.')[0] for name in within(tensors, f'{layers}.')})


def cropped(picture: Any, side: int) -> Tensor:
    """Returns the middle of a PIL image whose shorter side was brought to `side`, normalised, `(3, side, side)`."""
    from torchvision.transforms.v2 import functional

    resized = functional.resize(picture.convert('RGB'), [side], functional.InterpolationMode.BICUBIC)
    pixels = functional.pil_to_tensor(functional.center_crop(resized, [side])).float() / 255
    return functional.normalize(pixels, list(PIXEL_MEAN), list(PIXEL_STD))
