"""A denoiser with a score head: what a critic of half-denoised media is."""

from __future__ import annotations

from torch import Tensor, nn

from align_anything.models.score import SCORE_HEAD, ScoreHead


class DenoiserForScore(nn.Module):
    """Reads what a denoiser predicts: the mean over all positions, through a linear head over the channels.

    The last layer of every denoiser is linear, so this is a linear head on the mean of what that layer reads, which is
    the last normalisation, with a weight that trains in two factors. It needs to know no denoiser from inside.
    """

    def __init__(self, denoiser: nn.Module, channels: int, channel_dim: int = 0) -> None:
        """Takes a denoiser of latents with so many channels, in dimension `channel_dim` of one sample."""
        super().__init__()
        self.denoiser = denoiser
        self.channel_dim = channel_dim
        self.add_module(SCORE_HEAD, ScoreHead(channels))

    def read(self, predicted: Tensor) -> Tensor:
        """Returns the scores `(batch,)` float32 of predictions `(batch, …)`, of the shape of latents."""
        by_channel = predicted.movedim(1 + self.channel_dim, 1)
        return self.get_submodule(SCORE_HEAD)(by_channel.flatten(2).mean(2))
