"""What families share whose latents are those of pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align_anything.core.buckets import bucket_sizes, nearest_bucket
from align_anything.core.contents import native_size
from align_anything.core.errors import ModelError
from align_anything.models.diffusion.fitting import fit_image
from align_anything.models.diffusion.prepared import Prompt, Size
from align_anything.models.diffusion.spec import DiffusionSpec

SOURCE = 'source'
"""The condition that holds latents of the pictures of a prompt."""


class PictureSpec(DiffusionSpec):
    """A family whose latents are `(channels, height, width)` of an `AutoencoderKL`."""

    @property
    def factor(self) -> int:
        """Pixels of a side for one latent."""
        return 2 ** (len(self.configs['vae']['block_out_channels']) - 1)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.configs['vae']['latent_channels']

    @property
    def size_unit(self) -> int:
        """Pixels that sides must be a multiple of."""
        return self.factor * self.side_multiple

    @property
    def most_positions(self) -> int | None:
        """Patches of a side that the denoiser has positions for; None where it makes them for any."""
        return None

    def check(self) -> None:
        """Raises ModelError for a resolution that is no multiple of the autoencoder's and the patches' sides.

        And for one that has, or one of whose buckets has, a side of more patches than the denoiser has positions.
        """
        size, unit = self.default_size(), self.size_unit
        if any(side % unit or side < unit for side in size[-2:]):
            nearest = ' × '.join(str(max(1, round(side / unit)) * unit) for side in size[-2:])
            raise ModelError(
                f'a resolution of {" × ".join(map(str, size[-2:]))} for {self.model_type}: sides must be multiples of '
                f'{unit}. The nearest is {nearest}.'
            )
        if self.most_positions is None:
            return
        sizes = bucket_sizes(size[-2] * size[-1], unit) if self.sizing.buckets else (size[-2:],)
        longest, most = max(sizes, key=max), self.most_positions * unit
        if max(longest) > most:
            found = f'a resolution of {size[-2]} × {size[-1]}'
            if self.sizing.buckets:
                found = f'diffusion_cfgs.aspect_buckets: of {found}, a bucket is {longest[-2]} × {longest[-1]}'
            raise ModelError(
                f'{found}, and the denoiser of {self.folder} has positions for sides of at most {most} pixels: take a '
                'smaller diffusion_cfgs.resolution.'
            )

    def default_size(self) -> Size:
        """Returns the size of the settings, else that of the checkpoint, `(height, width)`."""
        side = self.configs[self.denoiser].get('sample_size') or 128
        sides = (side, side) if isinstance(side, int) else tuple(side)
        return self.sizing.resolution or (sides[0] * self.factor, sides[1] * self.factor)

    def size_of(self, medium: Any) -> Size:
        """Returns what `bucket_of` does."""
        return self.bucket_of(native_size(medium))

    def bucket_of(self, own: Size) -> Size:
        """Returns the default size, or of its buckets the nearest to the picture's aspect ratio."""
        height, width = self.default_size()
        if not self.sizing.buckets:
            return height, width
        sizes = bucket_sizes(height * width, self.size_unit)
        return nearest_bucket(own, sizes)

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Returns `(channels, height, width)`."""
        return self.channels, size[0] // self.factor, size[1] // self.factor

    def fitted(self, medium: Any, size: Size) -> Tensor:
        """Returns a PIL image as `(3, height, width)`, from -1 to 1."""
        return fit_image(medium, *size)

    def scaled(self, latents: Tensor) -> Tensor:
        """Returns latents of the autoencoder as the denoiser has them."""
        config = self.configs['vae']
        return (latents - (config.get('shift_factor') or 0)) * config.get('scaling_factor', 0.18215)

    def unscaled(self, latents: Tensor) -> Tensor:
        """Returns latents of the denoiser as the autoencoder has them."""
        config = self.configs['vae']
        return latents / config.get('scaling_factor', 0.18215) + (config.get('shift_factor') or 0)

    def encode_pictures(self, pipeline: Any, prompt: Prompt) -> dict[str, Tensor]:
        """Returns `source`, the latents of the one picture of a prompt."""
        (picture,) = prompt.pictures
        return {SOURCE: self.encode_media(pipeline, self.fitted(picture, prompt.size)[None])[0].cpu()}

    @torch.no_grad()
    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the mode of the autoencoder's distribution, scaled."""
        # Asking the autoencoder itself for its device goes through all its modules.
        weight = next(pipeline.vae.parameters())
        return self.scaled(pipeline.vae.encode(fitted.to(weight)).latent_dist.mode().float())

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns RGB PIL images."""
        vae = pipeline.vae
        pixels = vae.decode(self.unscaled(latents.to(vae.device, vae.dtype)), return_dict=False)[0]
        return pipeline.image_processor.postprocess(pixels, output_type='pil')


def rows(**named: Tensor) -> list[dict[str, Tensor]]:
    """Returns batches by name as the tensors of each row by name, on the CPU."""
    count = len(next(iter(named.values())))
    return [{name: value[row].cpu() for name, value in named.items()} for row in range(count)]


def first_channels(output: Tensor, sample: Tensor) -> Tensor:
    """Returns the prediction of a denoiser that predicts a variance behind it, which nothing uses."""
    return output[:, : sample.shape[1]]
