"""Previews of a run: what a denoiser makes of fixed prompts from fixed noise, as it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from align_anything.algorithms.base import Algorithm
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object, is_main, rank, world_size
from align_anything.core.types import Conversation, Example
from align_anything.datasets.conversation import without_prompt_text
from align_anything.engines.base import Engine
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.policies.denoising.prediction import Guidance
from align_anything.reporting.metrics import MetricsWriter
from align_anything.reporting.previews import PreviewPage
from align_anything.rollouts.denoising import DenoisingRollouts, DenoisingSampling
from align_anything.trainers.runs.denoised_rollouts import open_denoiser
from align_anything.trainers.runs.pipelines import guidance_of_previews
from align_anything.trainers.runs.settings import preview_prompts, preview_turns


@dataclass(frozen=True)
class RunPreviews:
    """Generates and shows a medium for each prompt, which no other prompt and no number of ranks changes.

    Attributes:
        every: optimizer steps from one preview to the next.
        examples: the prompts.
        rollouts: what generates.
        sampling: how.
        page: where they are shown, on the main rank.
    """

    every: int
    examples: Sequence[Example]
    rollouts: DenoisingRollouts
    sampling: DenoisingSampling
    page: PreviewPage | None

    def __call__(self, step: int, writer: MetricsWriter) -> None:
        """Previews the model as it is after a step. Every rank calls it."""
        kind, found = self.rollouts.spec.kind, {}
        # Ranks make equally many calls, for each of which a partitioned denoiser is gathered.
        for first in range(0, len(self.examples), world_size()):
            number = first + rank()
            sampling = replace(self.sampling, seed=self.sampling.seed + number)
            for (response,) in self.rollouts.generate(self.examples[number : number + 1], sampling):
                found[number] = response.parts[0][kind]
        media = {number: medium for own in all_gather_object(found) for number, medium in own.items()}
        if self.page is not None:
            self.page.write(step, [media[number] for number in sorted(media)], writer)


def previews_of(
    cfgs: RunCfgs,
    algorithm: Algorithm,
    spec: DiffusionSpec,
    policy: Engine,
    resume_step: int | None,
    rollouts: DenoisingRollouts | None = None,
) -> RunPreviews | None:
    """The previews that a run asks for, generated as its `rollouts` are where it has some. Every rank calls it.

    `resume_step` is the step that the run goes on from, None where it starts afresh.
    """
    prompts = preview_prompts(cfgs)
    if not prompts:
        return None
    turns = preview_turns(cfgs, spec.shown)
    own, guidance = cfgs.diffusion_cfgs, guidance_of_previews(cfgs, algorithm, spec)
    page = PreviewPage(Path(cfgs.logger_cfgs.output_dir), prompts, spec.kind, resume_step) if is_main() else None
    return RunPreviews(
        every=own.preview_every,
        examples=[_example(spec, own, guidance) for own in turns],
        rollouts=rollouts or open_denoiser(cfgs, policy, spec, batch_size=1),
        sampling=DenoisingSampling(steps=own.preview_steps, guidance=guidance, units='draws', seed=own.preview_seed),
        page=page,
    )


def _example(spec: DiffusionSpec, turns: Conversation, guidance: Guidance) -> Example:
    unconditional = spec.encode_prompt(without_prompt_text(turns)) if guidance.is_on else None
    return Example(spec.encode_prompt(turns), [], source='preview', unconditional=unconditional)
