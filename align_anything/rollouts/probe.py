"""Checks at each sync that a rollout engine with weights of its own samples from the policy in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from align_anything.core.distributed import all_gather_object
from align_anything.core.errors import TrainingError
from align_anything.core.types import Example, Response
from align_anything.policies.base import Collator
from align_anything.rollouts.base import RolloutEngine, Sampling, Tell
from align_anything.rollouts.experience import Scorer, complete, joined, record

PROBE_TOKENS = 8
MEDIA_PROBE_TOKENS = 32
"""Where responses begin with media: their openings may be long, and are no choice of the policy's."""


@dataclass
class ProbedRollouts:
    """Generates with `engine`, a copy of the policy, and stops the run when that copy is not what is trained.

    Attributes:
        engine: what samples.
        scorer: gives the scores of the policy that is trained.
        collate: makes its batches, for a `device`.
        tolerance: how far the log-probabilities of both may lie apart, in the mean over tokens.
    """

    engine: RolloutEngine
    scorer: Scorer
    collate: Collator
    device: torch.device
    tolerance: float
    _synced: int | None = None
    _probed: int | None = None

    def sync(self, version: int) -> None:
        """Hands the weights over; the next rollout begins with a probe if they are new."""
        self.engine.sync(version)
        self._synced = version

    def sleep(self) -> None:
        """As the engine does."""
        self.engine.sleep()

    def generate(
        self, examples: Sequence[Example], sampling: Sampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """As the engine does, after a probe."""
        self.probe(examples, sampling)
        return self.engine.generate(examples, sampling, tell)

    def probe(self, examples: Sequence[Example], sampling: Sampling) -> None:
        """Compares, if weights are new, what both say of a few tokens sampled for one prompt, with media if it can.

        Every rank calls it. Raises TrainingError, on every rank, when they differ on one.
        """
        if self._synced == self._probed:
            return
        asked = sorted(examples, key=lambda example: not example.prompt.media_counts)[:1]
        begins = sampling.emit is not None and sampling.emit.begins is not None
        tokens = min(MEDIA_PROBE_TOKENS if begins else PROBE_TOKENS, sampling.max_new_tokens)
        few = replace(sampling, responses=1, max_new_tokens=tokens, repetition_penalty=1.0)
        completed = complete(asked, self.engine.generate(asked, few))
        record('old', self.scorer, self.collate, [completed], self.device)
        theirs, ours = joined(completed, 'rollout'), joined(completed, 'old')
        found = (float((theirs - ours).abs().mean()), float(theirs.mean()), float(ours.mean())) if completed else None
        source = asked[0].source if asked else ''
        for number, (difference, where) in enumerate(all_gather_object((found, source))):
            # Not a number is no agreement either.
            if difference is not None and not difference[0] <= self.tolerance:
                raise TrainingError(
                    f'rank {number}: after step {self._synced} vLLM does not generate with the weights in training: on '
                    f'{where} its log-probabilities are {difference[1]:.5f} in the mean, those of the trainer '
                    f'{difference[2]:.5f}, and they differ by {difference[0]:.5f} a token, where '
                    f'{self.tolerance:g} is allowed (vllm_cfgs.vllm_probe_tolerance).'
                )
        self._probed = self._synced
