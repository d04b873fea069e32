"""Qwen-Image (Wu et al., 2025): a flow over packed latents of a video autoencoder, under Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.packing import even_sigmas, pack, unpack
from align_anything.models.diffusion.pictures import PictureSpec
from align_anything.models.diffusion.prepared import Prompt, Size
from align_anything.models.diffusion.several import filled, kept_apart, named, replaced, rows_of, split
from align_anything.models.diffusion.spec import Given
from align_anything.models.diffusion.statistics import standardised, unstandardised
from align_anything.models.diffusion.turning import turned_as_complex


class QwenImageSpec(PictureSpec):
    """Predicts the velocity at σ of latents that are standardised by channel."""

    pipelines = ('QwenImagePipeline',)
    side_multiple = 2
    rescales_guidance = True
    default_text_length = 512
    one_size = ''

    @property
    def factor(self) -> int:
        """Pixels of a side for one latent."""
        return 2 ** len(self.configs['vae']['temperal_downsample'])

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.configs['vae']['z_dim']

    def default_size(self) -> Size:
        """Returns the size of the settings, else 128 latents a side, `(height, width)`."""
        side = 128 * self.factor
        return self.sizing.resolution or (side, side)

    @torch.no_grad()
    def encode_read(self, pipeline: Any, prompts: Sequence[Prompt]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` of each, and its `mask` of ones."""
        found = []
        for prompt in prompts:
            text = self.embedded(pipeline, prompt)[0].cpu()
            found.append({'text': text, 'mask': torch.ones(len(text), dtype=torch.long)})
        return found

    def embedded(self, pipeline: Any, prompt: Prompt) -> Tensor:
        """Returns what Qwen2.5-VL makes of a prompt, `(1, length, size)`."""
        return pipeline.encode_prompt([prompt.text], pipeline.device, max_sequence_length=self.text_length)[0]

    def scaled(self, latents: Tensor) -> Tensor:
        """Returns latents of the autoencoder as the denoiser has them."""
        return standardised(latents, self.configs['vae'])

    def unscaled(self, latents: Tensor) -> Tensor:
        """Returns latents of the denoiser as the autoencoder has them."""
        return unstandardised(latents, self.configs['vae'])

    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the mode of the distribution of pictures as videos of one frame, standardised."""
        return super().encode_media(pipeline, fitted[:, :, None])[:, :, 0]

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns RGB PIL images."""
        vae = pipeline.vae
        video = vae.decode(self.unscaled(latents.to(vae.device, vae.dtype)[:, :, None]), return_dict=False)[0]
        return pipeline.image_processor.postprocess(video[:, :, 0], output_type='pil')

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        pictures = self._pictures(sample, conditions)
        shapes = [[(1, *(side // 2 for side in picture.shape[-2:])) for picture in pictures]] * len(sample)
        tokens = torch.cat([pack(picture) for picture in pictures], 1)
        predicted = self._predicted(denoiser, tokens, shapes, level, conditions['text'], conditions['mask'], guidance)
        return unpack(predicted[:, : self.tokens(sample.shape[1:])].float(), *sample.shape[-2:])

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns the velocity of samples of several sizes."""
        samples = [own.sample for own in given]
        pictures = [self._pictures(own.sample, own.conditions) for own in given]
        text, mask = (filled([own.conditions[name] for own in given]) for name in ('text', 'mask'))
        length = text.shape[1]
        tokens = [torch.cat([pack(picture) for picture in own], 1) for own in pictures]
        present = rows_of(samples, [own.shape[1] for own in tokens], length, text=length, turn=turned_as_complex)
        (embed,) = named(denoiser, 'pos_embed')
        tables = []
        for own in pictures:
            shape = [(1, *(side // 2 for side in picture.shape[-2:])) for picture in own]
            of_pictures, of_text = embed([shape], max_txt_seq_len=length, device=text.device)
            tables.append((torch.cat([of_text, of_pictures]),))
        present = present.turning(samples, tables)
        # Some tell the sample, which stands first, from what it is made from by these.
        shapes = []
        for sample in samples:
            own = self.tokens(sample.shape[1:])
            shapes += [[(1, 1, own), (1, 1, present.longest - own)]] * len(sample)
        with kept_apart(present), replaced(denoiser, 'pos_embed', 'forward', lambda *given, **named: None):
            predicted = self._predicted(
                denoiser,
                filled(tokens, present.longest),
                shapes,
                torch.cat([own.level for own in given]),
                text,
                mask,
                guidance,
            )
        return [
            unpack(own[:, : self.tokens(sample.shape[1:])].float(), *sample.shape[-2:])
            for own, sample in zip(split(predicted, samples), samples, strict=True)
        ]

    def _pictures(self, sample: Tensor, conditions: Mapping[str, Tensor]) -> list[Tensor]:
        return [sample, *(latents.to(sample.dtype) for latents in self.beside(conditions))]

    def _predicted(
        self,
        denoiser: nn.Module,
        tokens: Tensor,
        shapes: Sequence[Sequence[tuple[int, ...]]],
        level: Tensor,
        text: Tensor,
        mask: Tensor,
        guidance: float,
    ) -> Tensor:
        told = None
        if self.configs[self.denoiser].get('guidance_embeds'):
            told = torch.full((len(tokens),), guidance, dtype=torch.float32, device=tokens.device)
        return denoiser(
            hidden_states=tokens,
            timestep=level * self.timesteps / 1000,
            guidance=told,
            encoder_hidden_states=text.to(tokens.dtype),
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=shapes,
            return_dict=False,
        )[0]

    def beside(self, conditions: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns the latents `(batch, …)` whose tokens the denoiser sees behind those of samples: none."""
        return []

    def sigmas(self, steps: int) -> list[float] | None:
        """Returns even noise levels."""
        return even_sigmas(steps)


SPEC = QwenImageSpec
