"""CogVideoX (Yang et al., 2024): v in a transformer over frames, under T5."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.library import pipeline_class
from align_anything.models.diffusion.pictures import rows
from align_anything.models.diffusion.prepared import Size
from align_anything.models.diffusion.several import filled, kept_apart, named, replaced, rows_of, split, strips, unstrip
from align_anything.models.diffusion.spec import Given
from align_anything.models.diffusion.turning import last_turned_in_pairs
from align_anything.models.diffusion.videos import VideoSpec


class CogVideoXSpec(VideoSpec):
    """Predicts v at integer timesteps of latents `(frames, channels, height, width)`."""

    pipelines = ('CogVideoXPipeline',)
    channel_dim = 1
    side_multiple = 2
    one_size = ''
    frames, fps = 49, 8.0

    @property
    def default_text_length(self) -> int:
        """Most tokens of a prompt, as the denoiser has it."""
        return self.configs[self.denoiser]['max_text_seq_length']

    def check(self) -> None:
        """Raises ModelError for a number of frames that no patch covers, and as all families do.

        And for any size but its own where the denoiser has learned its positions.
        """
        super().check()
        config = self.configs[self.denoiser]
        own = config['sample_height'] * self.factor, config['sample_width'] * self.factor
        if config.get('use_learned_positional_embeddings') and (self.sizing.buckets or self.default_size()[1:] != own):
            raise ModelError(
                f'the denoiser of {self.folder} has learned its positions, for {own[0]} × {own[1]} pixels alone: leave '
                'out diffusion_cfgs.resolution and aspect_buckets.'
            )
        patch, frames = config.get('patch_size_t') or 1, self.latent_shape(self.default_size())[0]
        if patch > 1:
            self.one_size = 'its patches are of several frames.'
        if frames % patch:
            raise ModelError(
                f'num_frames {self.default_size()[0]} is {frames} frames of latents, which must be a multiple of '
                f'{patch}: take {1 + (frames - frames % patch - 1) * self.frame_factor}.'
            )

    def default_size(self) -> Size:
        """Returns the size of the settings, else that of the checkpoint, `(frames, height, width)`."""
        config = self.configs[self.denoiser]
        own = config['sample_height'] * self.factor, config['sample_width'] * self.factor
        return (self.sizing.num_frames or self.frames, *(self.sizing.resolution or own))

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Returns `(frames, channels, height, width)`."""
        channels, frames, height, width = super().latent_shape(size)
        return frames, channels, height, width

    def tokens(self, shape: Sequence[int]) -> int:
        """Returns how many tokens the denoiser makes of latents of `shape`."""
        frames, _, height, width = shape
        return frames * height * width // self.side_multiple**2

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` of each."""
        text, _ = pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=pipeline.device,
        )
        return rows(text=text)

    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the mode of the autoencoder's distribution, scaled, frames before channels."""
        return super().encode_media(pipeline, fitted).transpose(1, 2).contiguous()

    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns `Video`s."""
        return super().decode_latents(pipeline, latents.transpose(1, 2))

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns v."""
        return self._predicted(denoiser, sample, level, conditions['text'], self._rotary(sample))

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns v of samples of several sizes."""
        samples, patch = [own.sample for own in given], self.side_multiple
        text = filled([own.conditions['text'] for own in given])
        tokens = [self.tokens(sample.shape[1:]) for sample in samples]
        present = rows_of(samples, tokens, text.shape[1], text=text.shape[1])
        rotary = [self._rotary(sample) for sample in samples]
        turned = [own for own in rotary if own is not None]
        (embed,) = named(denoiser, 'patch_embed')
        added: Sequence[Tensor] = ()
        if turned:
            present = dataclasses.replace(present, turn=last_turned_in_pairs).turning(samples, turned)
        else:
            places = [
                embed._get_positional_embeddings(
                    *sample.shape[-2:], (sample.shape[1] - 1) * embed.temporal_compression_ratio + 1, sample.device
                )[0]
                for sample in samples
            ]
            added = present.turning(samples, [[own] for own in places]).tables
        frames_last = [sample.transpose(1, 2) for sample in samples]
        with (
            kept_apart(present),
            replaced(denoiser, 'patch_embed', '_get_positional_embeddings', lambda *a, **b: added[0]),
        ):
            predicted = self._predicted(
                denoiser,
                strips(frames_last, patch, present.longest)[:, None],
                torch.cat([own.level for own in given]),
                text,
                None,
            )[:, 0]
        return [
            unstrip(own, like, patch).transpose(1, 2)
            for own, like in zip(split(predicted, samples), frames_last, strict=True)
        ]

    def _predicted(self, denoiser: nn.Module, sample: Tensor, level: Tensor, text: Tensor, rotary: Any) -> Tensor:
        return denoiser(
            hidden_states=sample,
            encoder_hidden_states=text.to(sample.dtype),
            timestep=level,
            image_rotary_emb=rotary,
            return_dict=False,
        )[0].float()

    def _rotary(self, sample: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns the rotations of positions, as the pipeline makes them; None for a denoiser with other positions."""
        config = self.configs[self.denoiser]
        if not config.get('use_rotary_positional_embeddings'):
            return None
        like = SimpleNamespace(**{'patch_size_t': None, **config})
        pipeline = SimpleNamespace(vae_scale_factor_spatial=self.factor, transformer=SimpleNamespace(config=like))
        height, width = (side * self.factor for side in sample.shape[-2:])
        make = pipeline_class(self.model_type, self.folder)._prepare_rotary_positional_embeddings
        return make(pipeline, height, width, sample.shape[1], sample.device)


SPEC = CogVideoXSpec
