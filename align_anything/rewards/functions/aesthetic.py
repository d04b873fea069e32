"""How much people like the look of a picture."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, PositiveInt
from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.rewards.base import Completion, Values, register_reward
from align_anything.rewards.frozen import PICTURES_AND_TEXT, Device, checkpoint_for, frozen, pictures_embedded
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of

Layers = list[tuple[Tensor, Tensor]]


def _predictor(path: str) -> str:
    try:
        layers_of(path)
    except ModelError as error:
        raise ValueError(str(error)) from error
    return path


@register_reward('aesthetic', reads=PICTURES)
def aesthetic(
    completions: Sequence[Completion],
    *,
    model: Annotated[str, checkpoint_for(PICTURES_AND_TEXT)],
    weights: Annotated[str, AfterValidator(_predictor)],
    device: Device = None,
    batch_size: PositiveInt = 32,
    missing: Missing = 0.0,
) -> Values:
    """What a predictor on the embeddings of a CLIP model says, for LAION's about 1 to 10.

    The predictor is a linear layer, or several without activations between, as LAION trained them
    (https://github.com/christophschuhmann/improved-aesthetic-predictor); its input is the embedding at length 1.

    Args:
        completions: the responses.
        model: checkpoint of the CLIP model that the predictor was trained on; for LAION's it is ViT-L/14 of OpenAI.
        weights: safetensors file of the predictor, with the `weight` and `bias` of each layer.
        device: where CLIP runs; None is the device of this rank.
        batch_size: pictures in one pass.
        missing: reward of a response without a picture; None abstains.

    Raises:
        ModelError: the predictor does not fit the embeddings.
    """

    def scores(pictures: list[Any], owners: list[Completion]) -> list[float]:
        found = pictures_embedded(frozen(model, PICTURES_AND_TEXT, device), pictures, batch_size)
        layers = layers_of(weights)
        if layers[0][0].shape[1] != found.shape[1]:
            raise ModelError(
                f'{weights} reads embeddings of {layers[0][0].shape[1]} numbers, but {model} makes {found.shape[1]}: '
                'name the CLIP model that the predictor was trained on.'
            )
        for weight, bias in layers:
            found = torch.nn.functional.linear(found, weight, bias)
        return found.squeeze(-1).tolist()

    return mean_by_response(completions, pictures_of, scores, missing)


@functools.cache
def layers_of(path: str) -> Layers:
    """Returns weight and bias of each layer of a predictor in a safetensors file, in order, float32 on the CPU.

    Raises ModelError for a file that is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if Path(path).suffix != '.safetensors' or not Path(path).is_file():
        raise ModelError(
            f"{path} is no safetensors file. Convert LAION's .pth once: safetensors.torch.save_file(torch.load(path, "
            "weights_only=True), 'predictor.safetensors')."
        )
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f'{path} is damaged or truncated ({error}). Copy it again.') from error
    names = sorted({name.rpartition('.')[0] for name in tensors}, key=_by_number)
    wanted = {'.'.join(filter(None, (name, ending))) for name in names for ending in ('weight', 'bias')}
    if wanted != set(tensors) or not names:
        raise ModelError(f'{path} should hold weight and bias of each layer, but holds {", ".join(sorted(tensors))}.')
    layers = [tuple(tensors['.'.join(filter(None, (name, end)))] for end in ('weight', 'bias')) for name in names]
    sizes = [tuple(weight.shape) for weight, _ in layers]
    chained = all(one[:1] == other[1:] for one, other in zip(sizes, sizes[1:], strict=False))
    biased = all(weight.ndim == 2 and bias.shape == weight.shape[:1] for weight, bias in layers)
    if not (biased and chained and sizes[-1][0] == 1):
        raise ModelError(f'{path}: its layers {sizes} do not lead from an embedding to one number.')
    return layers


def _by_number(name: str) -> list[Any]:
    """What `layers.10` comes behind `layers.2` by."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r'(\d+)', name)]
