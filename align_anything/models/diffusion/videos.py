"""What families share whose latents are those of videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from align_anything.core.buckets import bucket_sizes, clip_sizes, frame_counts, nearest_bucket
from align_anything.core.contents import native_size
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import MediaKind, Video
from align_anything.models.diffusion.fitting import fit_image
from align_anything.models.diffusion.pictures import PictureSpec
from align_anything.models.diffusion.prepared import Size


class VideoSpec(PictureSpec):
    """A family whose latents are `(channels, frames, height, width)`: one of the first frame, then one of several each.

    A video gives its first frames, one after the other; at what rate they were picked is for the data to say.
    """

    emits: ClassVar[frozenset[MediaKind]] = frozenset({'video'})
    frames: ClassVar[int] = 81
    """Of a video when the settings say none."""
    fps: ClassVar[float] = 16.0
    """Frames per second of what it makes."""
    pixels: ClassVar[tuple[int, int]] = (480, 832)
    """Height and width when the settings say none."""

    @property
    def frame_factor(self) -> int:
        """Frames for one latent, after the first."""
        return self.configs['vae'].get('temporal_compression_ratio', 4)

    def check(self) -> None:
        """Raises ModelError for a resolution, or a number of frames, that the family cannot have."""
        super().check()
        frames = self.default_size()[0]
        if (frames - 1) % self.frame_factor:
            nearest = 1 + round((frames - 1) / self.frame_factor) * self.frame_factor
            raise ModelError(
                f'num_frames {frames} for {self.model_type}: it must be one more than a multiple of '
                f'{self.frame_factor}. The nearest is {nearest}.'
            )

    def default_size(self) -> Size:
        """Returns the size of the settings, else that of the family, `(frames, height, width)`."""
        return (self.sizing.num_frames or self.frames, *(self.sizing.resolution or self.pixels))

    def size_of(self, medium: Any) -> Size:
        """Returns what `bucket_of` does. Raises SampleError for a video with too few frames."""
        return self.bucket_of(native_size(medium))

    def bucket_of(self, own: Size) -> Size:
        """Returns the default size, or of its buckets the nearest to the video's aspect ratio.

        With buckets, a video with fewer frames than the default has as many of its own as the family can have. Raises
        SampleError for one with too few.
        """
        frames, height, width = self.default_size()
        if self.sizing.buckets:
            sizes = bucket_sizes(height * width, self.size_unit)
            return nearest_bucket(own, clip_sizes(frame_counts(frames, self.frame_factor), sizes))
        if own[0] < frames:
            raise SampleError(f'the video has {own[0]} frames, and {frames} are trained')
        return frames, height, width

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Returns `(channels, frames, height, width)`."""
        frames, height, width = size
        return self.channels, (frames - 1) // self.frame_factor + 1, height // self.factor, width // self.factor

    def fitted(self, medium: Any, size: Size) -> Tensor:
        """Returns a video as `(3, frames, height, width)`, from -1 to 1."""
        from PIL import Image

        frames, height, width = size
        if len(medium.frames) < frames:
            raise SampleError(f'the video has {len(medium.frames)} frames, and {frames} are trained')
        pictures = [fit_image(Image.fromarray(frame), height, width) for frame in medium.frames[:frames]]
        return torch.stack(pictures, 1)

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns `Video`s."""
        vae = pipeline.vae
        return self.as_videos(vae.decode(self.unscaled(latents.to(vae.device, vae.dtype)), return_dict=False)[0])

    def as_videos(self, pixels: Tensor) -> list[Video]:
        """Returns pixels `(batch, 3, frames, height, width)` from -1 to 1 as `Video`s."""
        levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        shown = levels.permute(0, 2, 3, 4, 1).cpu().numpy()
        times = numpy.arange(shown.shape[1]) / self.fps
        return [Video(frames, times, self.fps) for frames in shown]

    def tokens(self, shape: Sequence[int]) -> int:
        """Returns how many tokens the denoiser makes of latents of `shape`."""
        return math.prod(shape[1:]) // self.side_multiple**2
