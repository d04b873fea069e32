"""Latents that are standardised by the mean and deviation of each channel, as autoencoders of videos state them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def standardised(latents: Tensor, vae: Mapping[str, Any]) -> Tensor:
    """Returns latents `(batch, channels, …)` of an autoencoder with mean 0 and deviation 1."""
    mean, deviation = _of(latents, vae)
    return (latents - mean) / deviation


def unstandardised(latents: Tensor, vae: Mapping[str, Any]) -> Tensor:
    """Returns standardised latents as the autoencoder has them."""
    mean, deviation = _of(latents, vae)
    return latents * deviation + mean


def _of(latents: Tensor, vae: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    shape = (1, -1, *[1] * (latents.ndim - 2))
    mean, deviation = (latents.new_tensor(vae[name]).view(shape) for name in ('latents_mean', 'latents_std'))
    return mean, deviation
