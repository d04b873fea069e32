"""How far what a model makes is from what it should look or sound like, as two heaps of features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from align_anything.core.errors import DataError
from align_anything.core.logging import get_logger
from align_anything.metrics.base import AT_ONCE, Measured, register_metric
from align_anything.metrics.distances import frechet_distance, kernel_distance
from align_anything.metrics.features import Encoder, features_of, features_of_folder, open_encoder
from align_anything.metrics.samples import Samples
from align_anything.rewards.frozen import Device

logger = get_logger(__name__)


@register_metric('fid', lower_is_better=True, reads=('image', 'video', 'audio'))
def fid(
    samples: Samples, *, encoder: str, reference: str, device: Device = None, batch_size: PositiveInt = 32
) -> Measured:
    """Fréchet distance of generated media to a folder of real ones, on the features of an encoder.

    With CLAP it is the Fréchet audio distance. Published FIDs are of an Inception network: numbers of other encoders
    compare among themselves alone. Of videos, each frame counts as a picture.

    Args:
        samples: the responses.
        encoder: checkpoint: CLIP, SigLIP, CLAP, DINOv2, ResNet and their like.
        reference: folder with the real pictures or audio clips.
        device: where the encoder runs; None is the device of this rank.
        batch_size: media in one pass.
    """
    own, real = _both(samples, encoder, reference, device, batch_size)
    width = own.shape[1]
    if min(len(own), len(real)) <= width:
        logger.warning(
            'fid: %d generated and %d real media for features of width %d: their covariances are not of full rank, and '
            'the distance is biased upwards. Take more, or kid, which has no bias.',
            *(len(own), len(real), width),
        )
    return Measured(value=frechet_distance(own, real), details=_counts(own, real))


@register_metric('kid', lower_is_better=True, reads=('image', 'video', 'audio'))
def kid(
    samples: Samples,
    *,
    encoder: str,
    reference: str,
    subsets: PositiveInt = 100,
    subset_size: PositiveInt = 1000,
    seed: int = 0,
    device: Device = None,
    batch_size: PositiveInt = 32,
) -> Measured:
    """Kernel distance of generated media to a folder of real ones, on the features of an encoder; without bias.

    It may be below 0, where both are as alike as two halves of one set.

    Args:
        samples: the responses.
        encoder: checkpoint: CLIP, SigLIP, CLAP, DINOv2, ResNet and their like.
        reference: folder with the real pictures or audio clips.
        subsets: random subsets whose mean it is; one of everything where neither side is larger than one.
        subset_size: media of each.
        seed: of the subsets.
        device: where the encoder runs; None is the device of this rank.
        batch_size: media in one pass.
    """
    own, real = _both(samples, encoder, reference, device, batch_size)
    found = kernel_distance(own, real, subsets=subsets, size=subset_size, seed=seed)
    return Measured(value=found.mean, details={**_counts(own, real), 'deviation_of_subsets': found.deviation})


def _both(
    samples: Samples, name: str, reference: str, device: str | None, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    encoder = open_encoder(name, device, batch_size)
    real = features_of_folder(reference, encoder, AT_ONCE)
    own = features_of(_media(samples, encoder), encoder, AT_ONCE)
    for features, whose in ((own, 'generated'), (real, 'real')):
        if len(features) < 2:
            raise DataError(f'there are {len(features)} {whose} media that {name} reads ({encoder.kind}): 2 at least.')
    return own, real


def _media(samples: Samples, encoder: Encoder) -> Iterator[Any]:
    for sample in samples:
        yield from sample.media(encoder.kind)
        if encoder.kind == 'image':
            for video in sample.media('video'):
                yield from map(Image.fromarray, video.frames)


def _counts(own: np.ndarray, real: np.ndarray) -> dict[str, int]:
    return {'generated': len(own), 'real': len(real), 'width': own.shape[1]}
