"""How much computation a sample takes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

from torch import Tensor, nn

from align_anything.core.types import Example
from align_anything.models.architecture import skeleton
from align_anything.models.family import FamilySpec

FRAMES_PER_POSITION = 2
"""Feature frames of an audio clip that make one position of its encoder, as in Whisper's."""


class WorkOf:
    """Estimates the computation of an Example in units of one token through the language model. Picklable.

    A position costs in proportion to the weights it passes through, of experts those that are chosen, so a position
    of a tower counts as the tower's weights over the language model's. Attention, which grows with the square of the
    length, is left out.

    Args:
        language, vision, audio: how many matrix products each weight of the component is used in; a component that is
            trained takes three, a frozen tower one.
    """

    def __init__(self, spec: FamilySpec, language: int = 3, vision: int = 3, audio: int = 3) -> None:
        self.spec = spec
        sizes = dict.fromkeys(('vision_tower', 'audio_tower', 'mm_proj', 'language_model'), 0)
        chosen = share_of_experts(spec.config.get_text_config().to_dict())
        layers = (module for module in self._model.modules() if isinstance(module, nn.Embedding))
        embeddings = {id(layer.weight) for layer in layers}
        for name, parameter in self._model.named_parameters():
            if id(parameter) not in embeddings:
                sizes[spec.component_of(name)] += parameter.numel() * (chosen if '.experts.' in name else 1)
        total = max(sizes['language_model'] * language, 1)
        self.vision, self.audio = sizes['vision_tower'] * vision / total, sizes['audio_tower'] * audio / total
        del self.__dict__['_model']

    @cached_property
    def _model(self) -> Any:
        return skeleton(self.spec.config)

    def __call__(self, example: Example) -> float:
        pieces = [example.prompt, *(piece for response in example.responses for piece in response.sequences)]
        media = [tensors_of(piece.media, self.patch_area) for piece in pieces]
        vision, audio = (sum(counts[index] for counts in media) for index in (0, 1))
        return len(example) + self.vision * vision + self.audio * audio

    @cached_property
    def patch_area(self) -> int:
        """Pixels of one patch of the vision tower."""
        config = self.spec.config.to_dict().get('vision_config') or {}
        size = config.get('patch_size') or 14
        return prod(size) if isinstance(size, (list, tuple)) else size**2


def share_of_experts(config: Mapping[str, Any]) -> float:
    """Returns which part of the experts of a layer a token goes through, 1 where there are none."""
    experts = config.get('num_experts') or config.get('num_local_experts')
    return config['num_experts_per_tok'] / experts if experts else 1.0


def tensors_of(media: Mapping[str, Tensor], patch_area: int) -> tuple[float, float]:
    """Positions that the vision and the audio tower compute for the media tensors of a piece."""
    vision = audio = 0.0
    for name, tensor in media.items():
        if name.startswith('pixel_values'):
            # (patches, values) where the processor makes the patches itself, (…, 3, height, width) elsewhere.
            flat = tensor.ndim == 2
            vision += tensor.shape[0] if flat else tensor.numel() / tensor.shape[-3] / patch_area
        elif name.startswith('input_features') or name.startswith('input_audio_features'):
            audio += tensor.shape[0] * tensor.shape[-1] / FRAMES_PER_POSITION
    return vision, audio
