"""Settings that only runs of pipelines have: models that denoise."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from align_anything.configs.base import Cfgs
from align_anything.configs.effects import Effects, needs, writing
from align_anything.core.types import MEDIA_KINDS


class DiffusionCfgs(Cfgs):
    """How a denoiser is trained. They mean nothing for models that write media as tokens."""

    takes_effect: ClassVar[Effects] = {
        '*': writing(*MEDIA_KINDS),
        **{
            f'timestep_logit_{key}': needs('diffusion_cfgs.timestep_sampling', 'logit_normal')
            for key in ('mean', 'std')
        },
        'timestep_mode_scale': needs('diffusion_cfgs.timestep_sampling', 'mode'),
        'min_snr_gamma': needs('diffusion_cfgs.loss_weighting', 'min_snr'),
    }

    resolution: PositiveInt | list[PositiveInt] | None = Field(
        None,
        description='Size in pixels that images and videos are brought to: a side, or height and width. null is what '
        'the checkpoint was trained at.',
    )
    aspect_buckets: bool = Field(
        False,
        description='Keeps the aspect ratio of images and videos: each is brought to the nearest of several sizes with '
        'about as many pixels as resolution has, and a micro-batch holds one size. Off, all are cropped to resolution.',
    )
    draws_per_sample: PositiveInt = Field(
        1, description='Draws of a noise level and noise for each response in an epoch; their loss is averaged.'
    )
    timestep_sampling: Literal['auto', 'logit_normal', 'uniform', 'mode'] = Field(
        'auto',
        description='How noise levels are drawn. logit_normal and mode are those of Stable Diffusion 3 (Esser et al., '
        '2024). auto is logit_normal for flows and uniform for all others.',
    )
    timestep_logit_mean: float = Field(0.0, description='Mean of the normal distribution behind logit_normal.')
    timestep_logit_std: PositiveFloat = Field(1.0, description='Its standard deviation.')
    timestep_mode_scale: float = Field(1.29, description='Scale of the mode distribution.')
    timestep_shift: PositiveFloat | None = Field(
        None,
        description='Shift s of the noise levels of a flow, σ to sσ / (1 + (s - 1)σ). null is what the scheduler of '
        'the checkpoint says, by the size of the media where it is dynamic; 1 is none.',
    )
    loss_weighting: Literal['none', 'min_snr', 'debiased', 'cosmap', 'sigma_sqrt'] = Field(
        'none',
        description='Weight of the loss by noise level: min_snr (Hang et al., 2023) and debiased are for DDPM, cosmap '
        'and sigma_sqrt (in fact σ⁻², as in diffusers) for flows.',
    )
    min_snr_gamma: PositiveFloat = Field(5.0, description='Highest signal-to-noise ratio that min_snr heeds.')
    noise_offset: NonNegativeFloat = Field(
        0.0, description='Noise that is the same for all positions of a channel, added to the noise; 0.03 to 0.1.'
    )
    embedded_guidance: PositiveFloat | None = Field(
        None,
        description='Guidance that guidance-distilled denoisers (FLUX.1-dev, HunyuanVideo) are told. null is 1 in '
        'training on data and 3.5 in rollouts.',
    )
    prepared_dir: str | None = Field(
        None,
        description='Folder that keeps latents and text embeddings, which later runs need not make again. null is the '
        'folder prepared in output_dir.',
    )
