"""Settings of runs that generate and train nothing: what a checkpoint says, shows or sings."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from align_anything.configs.diffusion import DiffusionCfgs
from align_anything.configs.effects import Effects, needs, writing
from align_anything.configs.online import BY_TRANSFORMERS, OnlineModelCfgs, OnlineRunCfgs
from align_anything.core.types import MEDIA_KINDS


class GenerationModelCfgs(OnlineModelCfgs):
    """Which checkpoint generates, how it samples, and the models that judge what it says."""

    takes_effect: ClassVar[Effects] = {'guidance_scale': (writing(*MEDIA_KINDS), BY_TRANSFORMERS)}

    model_name_or_path: str | None = Field(
        None,
        description='Checkpoint that generates: a folder, that of a LoRA adapter or the output folder of a run too, or '
        'a hub name. Required.',
    )
    model_max_length: PositiveInt = Field(
        4096, description='Most tokens of a prompt, media included, and its response together.'
    )
    temperature: NonNegativeFloat = Field(1.0, description='Sampling temperature; 0 decodes greedily.')
    guidance_scale: PositiveFloat | None = Field(
        None,
        description='Classifier-free guidance of media: 1 is none, above 1 heeds the prompt more, at twice the '
        'computation. null is none for codes of media, 4.5 for denoisers, and 1 for guidance-distilled ones.',
    )
    generation_batch_size: PositiveInt | None = Field(
        16, description='Responses that a device generates at once with transformers, or media with a denoiser.'
    )


class GenerationDiffusionCfgs(DiffusionCfgs):
    """How a denoiser generates. They mean nothing for models that write media as tokens."""

    takes_effect: ClassVar[Effects] = {'lora_weights': writing(*MEDIA_KINDS)}

    rollout_steps: PositiveInt = Field(28, description='Denoising steps of each medium.')
    lora_weights: str | None = Field(
        None,
        description='Folder of a saved adapter (pytorch_lora_weights.safetensors, of this package or of diffusers) to '
        'generate with. An adapter that records its pipeline may be named as model_name_or_path instead.',
    )
    embedded_guidance: PositiveFloat | None = Field(
        None, description='Guidance that guidance-distilled denoisers (FLUX.1-dev, HunyuanVideo) are told. null is 3.5.'
    )


class GenerationRunCfgs(OnlineRunCfgs):
    """All settings of a run that generates."""

    model_cfgs: GenerationModelCfgs = Field(default_factory=GenerationModelCfgs)
    diffusion_cfgs: GenerationDiffusionCfgs = Field(default_factory=GenerationDiffusionCfgs)


JUDGED = needs('model_cfgs.reward_model_name_or_path')
"""The condition that a model scores responses."""
