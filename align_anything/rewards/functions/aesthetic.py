"""How much people like the look of a picture."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import PositiveInt

from align_anything.core.errors import ModelError
from align_anything.rewards.base import Completion, Values, register_reward
from align_anything.rewards.frozen import PICTURES_AND_TEXT, Device, checkpoint_for, frozen, pictures_embedded
from align_anything.rewards.media import PICTURES, Missing, mean_by_response, pictures_of
from align_anything.rewards.published import Layers, linear_layers, read_weights, through, weights_file


@register_reward('aesthetic', reads=PICTURES)
def aesthetic(
    completions: Sequence[Completion],
    *,
    model: Annotated[str, checkpoint_for(PICTURES_AND_TEXT)],
    weights: Annotated[str, weights_file(lambda path: layers_of(path))],
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
        weights: file of the predictor, with the `weight` and `bias` of each layer, safetensors or of `torch.save`.
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
        return through(layers, found).tolist()

    return mean_by_response(completions, pictures_of, scores, missing)


@functools.cache
def layers_of(path: str) -> Layers:
    """Returns weight and bias of each layer of a predictor in a file, in order, float32 on the CPU.

    Raises ModelError for a file that is none.
    """
    return linear_layers(read_weights(path), path)
