"""Tiny pipelines of every family, and how each is asked for one plain sample."""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from align_anything.core.types import Audio, Video
from align_anything.models.diffusion.checkpoint import load_denoiser, load_spec
from align_anything.models.diffusion.prepared import Prompt
from align_anything.models.diffusion.process import DDPM, Angular, clean_and_noise
from align_anything.models.diffusion.spec import DiffusionSpec, Sizing
from align_anything.testing.tiny import build

LENGTH = 16
PROMPT = 'a red square'
STEPS = 3


@dataclass(frozen=True)
class Case:
    """A family as its own pipeline is called.

    Attributes:
        call: arguments of the pipeline beside prompt, steps and generator, without guidance by a second pass.
        guidance: what the denoiser is told, where it is.
        length: most tokens of a prompt; None where the tokenizer says so.
        unreached: parts of the names of parameters that no gradient reaches.
        patches: what stands in for functions of the pipeline's module, by name.
    """

    call: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = 1.0
    length: int | None = LENGTH
    unreached: tuple[str, ...] = ()
    patches: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


def picture(seed: int = 0) -> Image.Image:
    """A picture of 32 × 32 pixels."""
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (32, 32, 3), numpy.uint8))


def mask() -> Image.Image:
    """The mask of a picture: of its right half, but for a corner, all is painted."""
    painted = numpy.zeros((32, 32, 3), numpy.uint8)
    painted[:28, 16:] = 255
    return Image.fromarray(painted)


def smaller(area: int, ratio: float) -> tuple[int, ...]:
    """In place of 1024 × 1024 pixels, to which the pipeline brings pictures whatever size is asked for, 32 × 32."""
    return (32, 32, None) if area == 1024**2 else (384, 384)


SIZE = {'height': 32, 'width': 32}
SHORT = {'max_sequence_length': LENGTH}
FRAMES, SECONDS = 9, 1.0
CLIP = {'num_frames': FRAMES, 'output_type': 'np'}
PLAIN = {'guidance_scale': 1.0}
# Nothing reads what the last block makes of the text.
LAST_QUERIES = ('attn.norm_added_q', 'attn.add_q_proj')
QWEN_UNREACHED = (*LAST_QUERIES, 'attn.to_add_out', '.txt_mlp.')
# As the settings of a run cannot be, which would make prompts hang on what is installed.
UNCLEANED = {'use_resolution_binning': False, 'clean_caption': False}
CASES = {
    'sd15': Case(PLAIN, length=None),
    'sd2': Case(PLAIN, length=None),
    'sdxl': Case(PLAIN, length=None),
    'sd3': Case({**PLAIN, **SHORT}, unreached=LAST_QUERIES),
    'sd3_clip': Case({**PLAIN, **SHORT}, unreached=LAST_QUERIES),
    'flux': Case({'guidance_scale': 3.5, **SHORT, **SIZE}, guidance=3.5),
    'flux_schnell': Case({**SHORT, **SIZE}),
    'flux2_klein': Case({**PLAIN, **SHORT, **SIZE}),
    'z_image': Case({'guidance_scale': 0.0, **SHORT, **SIZE}),
    'sana': Case({**PLAIN, **SHORT, **SIZE, 'use_resolution_binning': False}),
    'pixart': Case({**PLAIN, **SHORT, **SIZE, **UNCLEANED}),
    'pixart_sigma': Case({**PLAIN, **SHORT, **SIZE, **UNCLEANED}),
    'wan': Case({**CLIP, **PLAIN, **SHORT, **SIZE}),
    'wan22': Case({**CLIP, **PLAIN, **SHORT, **SIZE}),
    'wan22_5b': Case({**CLIP, **PLAIN, **SHORT, **SIZE}),
    'ltx': Case({**CLIP, **PLAIN, **SHORT, **SIZE}),
    'cogvideox': Case({**CLIP, **PLAIN, **SHORT}),
    'cogvideox_5b': Case({**CLIP, **PLAIN, **SHORT}),
    'hunyuan_video': Case({**CLIP, **SIZE, 'guidance_scale': 6.0, 'max_sequence_length': 512}, 6.0, 512),
    'text_to_video_sd': Case({**CLIP, **PLAIN}, length=None),
    'stable_audio': Case({**PLAIN, 'audio_end_in_s': SECONDS}, length=None),
    'ace_step': Case({**PLAIN, 'audio_duration': SECONDS, 'max_text_length': 64}, length=64),
    'audioldm': Case({**PLAIN, 'audio_length_in_s': SECONDS}, length=None),
    'audioldm2': Case({**PLAIN, 'audio_length_in_s': SECONDS}, length=None),
    # Longer than what a tokenizer of letters makes of the template, which the pipeline does not cut off whole.
    'qwen_image': Case(
        {'true_cfg_scale': 1.0, 'max_sequence_length': 512, **SIZE}, length=512, unreached=QWEN_UNREACHED
    ),
    'flux_kontext': Case(
        {'guidance_scale': 3.5, **SHORT, **SIZE, 'image': picture(), 'max_area': 32 * 32, '_auto_resize': False},
        guidance=3.5,
    ),
    'flux_fill': Case(
        {'guidance_scale': 3.5, **SHORT, **SIZE, 'image': picture(), 'mask_image': mask()},
        guidance=3.5,
        patches={'retrieve_latents': lambda output, generator: output.latent_dist.mode()},
    ),
    'qwen_image_edit': Case(
        {'true_cfg_scale': 1.0, **SIZE, 'image': picture()},
        length=None,
        unreached=QWEN_UNREACHED,
        patches={'calculate_dimensions': smaller},
    ),
    'qwen_image_edit_plus': Case(
        {'true_cfg_scale': 1.0, **SIZE, 'image': picture()},
        length=None,
        unreached=QWEN_UNREACHED,
        patches={'calculate_dimensions': lambda area, ratio: smaller(area, ratio)[:2]},
    ),
}
EDITING = ('flux_kontext', 'flux_fill', 'qwen_image_edit', 'qwen_image_edit_plus')


@dataclass(frozen=True)
class Opened:
    """A tiny pipeline: whole as diffusers loads it, and as we take it apart."""

    folder: Path
    spec: DiffusionSpec
    whole: Any
    frozen: Any
    denoiser: nn.Module

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.latent_shape(self.spec.default_size())


@functools.cache
def folder_of(family: str) -> Path:
    """Builds a tiny pipeline, once a process."""
    return build(family, tempfile.mkdtemp(prefix=f'{family}-'))


@functools.cache
def opened(family: str) -> Opened:
    """Loads it, once a process: tests leave it as it is."""
    folder = folder_of(family)
    spec = load_spec(
        folder, Sizing(resolution=(32, 32), num_frames=FRAMES, seconds=SECONDS), text_length=CASES[family].length
    )
    return Opened(
        folder,
        spec,
        solvable(whole_pipeline(folder), spec),
        spec.open(torch.device('cpu')),
        load_denoiser(spec).eval().requires_grad_(False),
    )


def whole_pipeline(folder: Path) -> Any:
    """Loads a pipeline as users of diffusers do."""
    import diffusers

    index = diffusers.DiffusionPipeline.load_config(folder)
    empty = {name: None for name, origin in index.items() if isinstance(origin, list) and origin[0] is None}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **empty)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def solvable(pipeline: Any, spec: DiffusionSpec) -> Any:
    """Gives a pipeline the solver that `solved` is, where its own is of a higher order; returns the pipeline."""
    import diffusers

    name, config = type(pipeline.scheduler).__name__, pipeline.scheduler.config
    if name == 'DPMSolverMultistepScheduler':
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config, solver_order=1)
    elif name == 'UniPCMultistepScheduler':
        pipeline.scheduler = euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
        own = euler.set_timesteps
        levels = functools.partial(spec.levels, shape=())
        euler.set_timesteps = lambda steps, device=None: own(sigmas=levels(steps)[:-1].tolist(), device=device)
    elif name == 'CosineDPMSolverMultistepScheduler':
        pipeline.scheduler = _without_noise(diffusers, config)
    elif name in ('DDIMScheduler', 'EulerDiscreteScheduler'):
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(config, set_alpha_to_one=True, clip_sample=False)
    return pipeline


def _without_noise(diffusers: Any, config: Any) -> Any:
    """The scheduler of Stable Audio with the solver of first order that adds no noise, in place of its own."""

    class Euler(diffusers.CosineDPMSolverMultistepScheduler):
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> SimpleNamespace:
            number = int((self.timesteps == timestep).nonzero()[0])
            sigma, following = self.sigmas[number], self.sigmas[number + 1]
            clean = self.precondition_outputs(sample, model_output, sigma)
            self._step_index = number + 1
            return SimpleNamespace(prev_sample=clean + following * (sample - clean) / sigma)

    return Euler.from_config(config)


@contextmanager
def patched(pipeline: Any, patches: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replaces functions of the module of a pipeline."""
    with ExitStack() as stack:
        for name, made in patches.items():
            stack.enter_context(mock.patch.object(importlib.import_module(type(pipeline).__module__), name, made))
        yield


def conditions(tiny: Opened, *texts: str) -> list[dict[str, Tensor]]:
    """What the denoiser is given of each prompt, with the pictures that `CASES` have where it is shown any."""
    shown = (picture(), mask())[: len(tiny.spec.shown)]
    prompts = [Prompt(text, shown, tiny.spec.default_size() if shown else ()) for text in texts]
    found = tiny.spec.encode_read(tiny.frozen, [tiny.spec.read(prompt) for prompt in prompts])
    if not shown:
        return found
    return [own | tiny.spec.encode_pictures(tiny.frozen, prompt) for own, prompt in zip(found, prompts, strict=True)]


def own_sample(family: str, pipeline: Any, steps: int = STEPS) -> Any:
    """What a pipeline makes by itself, of a fixed seed."""
    with torch.no_grad(), patched(pipeline, CASES[family].patches):
        return pipeline(
            prompt=PROMPT, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **CASES[family].call
        )[0]


def noise_of(tiny: Opened) -> Tensor:
    """The noise that a pipeline draws for that seed, `(1, …)`."""
    return torch.randn(1, *tiny.shape, generator=torch.Generator().manual_seed(0))


def solved(family: str, tiny: Opened, denoiser: nn.Module | None = None, steps: int = STEPS) -> Tensor:
    """Latents by our own loop over `levels` and `predict`: Euler's method of a flow, DDIM of a DDPM."""
    spec, sample = tiny.spec, noise_of(tiny)
    given = spec.stack(conditions(tiny, PROMPT))
    levels = spec.levels(steps, tiny.shape)
    with torch.no_grad():
        for level, following in zip(levels[:-1, None], levels[1:, None], strict=True):
            guidance = CASES[family].guidance
            prediction = spec.predict(denoiser or tiny.denoiser, sample, level, given, guidance)
            clean, noise = clean_and_noise(spec.process, sample, prediction, level)
            if isinstance(spec.process, (DDPM, Angular)):
                alpha, sigma = spec.process.coefficients(following)
                sample = alpha * clean + sigma * noise
            else:
                sample = sample + (following - level) * prediction
    return sample


def values(media: Any) -> numpy.ndarray:
    """What a pipeline returns, as numbers."""
    first = media[0]
    if isinstance(first, Audio):
        return first.samples * 255.0
    if isinstance(first, Tensor):
        # A waveform of two channels.
        return first.mean(0).clamp(-1, 1).numpy() * 255.0
    if isinstance(first, Video):
        return first.frames.astype(numpy.float64)
    shown = numpy.asarray(first, dtype=numpy.float64)
    # Pictures are whole numbers already, and have three dimensions.
    return shown if shown.ndim == 3 else shown * 255
