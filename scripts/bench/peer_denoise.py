"""Plain loops over pipelines, written as the training examples of diffusers are: encoders run in each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.measure import StepClock, peak, reset_peak, resident
from scripts.bench.ours import SETTINGS


@dataclass(frozen=True)
class Loop:
    """One of them: of `sd15` or `sd3`, pictures `side` pixels high and wide, adapters of `rank` unless that is None.

    With `beta` it is DPO (Wallace et al., 2023), whose reference is a model of its own.
    """

    family: str
    folder: Path
    side: int
    batch: int
    seed: int
    rank: int | None = None
    beta: float | None = None


def train(loop: Loop, rows: Sequence[dict[str, Any]], draws: Sequence[tuple[Any, Any]]) -> tuple[StepClock, int, None]:
    """The clock of a run over `rows` in their order, and the memory that it took.

    `draws` are the noise levels and the noise of each step, which the examples sample on the way, so that both sides
    begin with the same loss; latents are the mode of the autoencoder's distribution, for the same reason.
    """
    import torch
    from torch.nn.utils import clip_grad_norm_

    reset_peak()
    before = resident()
    torch.manual_seed(loop.seed)
    denoiser, reference, trained = _models(loop)
    step_of = {'sd15': _StableDiffusion, 'sd3': _StableDiffusion3}[loop.family](loop.folder)
    optimizer = torch.optim.AdamW(trained, lr=float(SETTINGS['learning_rate']))
    names, clock = ('image',) if loop.beta is None else ('chosen', 'rejected'), StepClock()
    for step, (levels, noise) in enumerate(draws):
        own = rows[step * loop.batch : (step + 1) * loop.batch]
        with torch.no_grad():
            # All that is better, then all that is worse, at the same levels and under the same noise.
            pixels = torch.cat([_pixels(row[name], loop.side) for name in names for row in own])
            latents = step_of.latents(pixels)
            conditions = [torch.cat([value] * len(names)) for value in step_of.text([row['prompt'] for row in own])]
            levels, noise = (torch.cat([torch.from_numpy(given)] * len(names)) for given in (levels, noise))
            sample, target = step_of.noised(latents, noise, levels)
        errors = (step_of.predicted(denoiser, sample, levels, conditions) - target).square().flatten(1).mean(1)
        if reference is None:
            loss = errors.mean()
        else:
            with torch.no_grad():
                predicted = step_of.predicted(reference, sample, levels, conditions)
            better, worse = (errors - (predicted - target).square().flatten(1).mean(1)).chunk(2)
            loss = -torch.nn.functional.logsigmoid(-0.5 * loop.beta * (better - worse)).mean()
        loss.backward()
        clock.norms.append(float(clip_grad_norm_(trained, 1.0)))
        clock.losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        clock.mark()
    return clock, peak() - before, None


def _models(loop: Loop) -> tuple[Any, Any, list[Any]]:
    """The denoiser, its reference if it has one, and what is trained."""
    import diffusers
    from peft import LoraConfig

    from align_anything.models.diffusion.checkpoint import load_spec

    kind, name = {
        'sd15': (diffusers.UNet2DConditionModel, 'unet'),
        'sd3': (diffusers.SD3Transformer2DModel, 'transformer'),
    }[loop.family]
    denoiser = kind.from_pretrained(loop.folder / name).train()
    if loop.rank is not None:
        targets = list(load_spec(loop.folder).lora_targets)
        config = LoraConfig(r=loop.rank, lora_alpha=loop.rank, init_lora_weights='gaussian', target_modules=targets)
        denoiser.requires_grad_(False)
        denoiser.add_adapter(config)
    reference = None
    if loop.beta is not None:
        reference = kind.from_pretrained(loop.folder / name).requires_grad_(False)
    return denoiser, reference, [parameter for parameter in denoiser.parameters() if parameter.requires_grad]


def _pixels(path: str, side: int) -> Any:
    from PIL import Image

    from align_anything.models.diffusion.fitting import fit_image

    return fit_image(Image.open(path).convert('RGB'), side, side)[None]


class _StableDiffusion:
    """What examples/text_to_image/train_text_to_image.py does with a batch."""

    def __init__(self, folder: Path) -> None:
        import diffusers
        import transformers

        self.vae = diffusers.AutoencoderKL.from_pretrained(folder / 'vae').requires_grad_(False)
        self.encoder = transformers.CLIPTextModel.from_pretrained(folder / 'text_encoder').requires_grad_(False)
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / 'tokenizer')
        self.scheduler = diffusers.DDPMScheduler.from_pretrained(folder / 'scheduler')

    def latents(self, pixels: Any) -> Any:
        return self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor

    def text(self, prompts: list[str]) -> list[Any]:
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(
            prompts, max_length=length, padding='max_length', truncation=True, return_tensors='pt'
        ).input_ids
        return [self.encoder(ids)[0]]

    def noised(self, latents: Any, noise: Any, levels: Any) -> tuple[Any, Any]:
        return self.scheduler.add_noise(latents, noise, levels.long()), noise

    def predicted(self, denoiser: Any, sample: Any, levels: Any, conditions: list[Any]) -> Any:
        return denoiser(sample, levels.long(), *conditions, return_dict=False)[0]


class _StableDiffusion3:
    """What examples/dreambooth/train_dreambooth_lora_sd3.py does with one, without its preconditioning."""

    def __init__(self, folder: Path) -> None:
        import diffusers

        self.pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, transformer=None)
        for name in ('vae', 'text_encoder', 'text_encoder_2', 'text_encoder_3'):
            getattr(self.pipeline, name).requires_grad_(False)

    def latents(self, pixels: Any) -> Any:
        vae = self.pipeline.vae
        return (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor

    def text(self, prompts: list[str]) -> list[Any]:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, device='cpu', do_classifier_free_guidance=False, max_sequence_length=256
        )
        return [text, pooled]

    def noised(self, latents: Any, noise: Any, levels: Any) -> tuple[Any, Any]:
        sigmas = levels.view(-1, 1, 1, 1)
        return (1 - sigmas) * latents + sigmas * noise, noise - latents

    def predicted(self, denoiser: Any, sample: Any, levels: Any, conditions: list[Any]) -> Any:
        text, pooled = conditions
        return denoiser(sample, text, pooled, 1000 * levels, return_dict=False)[0]
