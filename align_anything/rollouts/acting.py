"""Rollouts of models that act: one action for each prompt, what is seen being looked at once between two syncs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from align_anything.core.types import Example, Response
from align_anything.models.acting.pieces import acted
from align_anything.models.acting.spec import ActionSpec
from align_anything.models.acting.spoc import SpocModel, Steps
from align_anything.policies.acting.collator import ActingInputs, ActionCollator
from align_anything.policies.acting.heads.base import Head
from align_anything.rollouts.base import Sampling, Tell, evaluated, tell_whole
from align_anything.rollouts.restricted import seed_of


class ActionRollouts:
    """Samples the next action of episodes, by weights that are always the present ones.

    Pictures that were seen before, in this episode or another one with the same goal, are not looked at again.

    Args:
        acting: the model, adapters in place.
        spec: its rules.
        head: how actions are sampled.
        device: where the model is.
        batch_size: episodes that are acted in at once.
        gathered: gathers all weights of a partitioned model on each rank as long as its context lasts.
    """

    def __init__(
        self,
        acting: SpocModel,
        spec: ActionSpec,
        head: Head,
        *,
        device: torch.device,
        batch_size: int,
        gathered: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.acting, self.spec, self.head = acting, spec, head
        self.device, self.batch_size, self.gathered = device, batch_size, gathered
        self.version = 0
        self._collate = ActionCollator(spec, head)
        self._looked: dict[tuple[int, bytes], Tensor] = {}

    @property
    def model(self) -> Any:
        """The model."""
        return self.acting

    def sync(self, version: int) -> None:
        """Forgets what was seen with earlier weights; they are those of the policy."""
        self.version = version
        self._looked.clear()

    def sleep(self) -> None:
        """Forgets what was seen."""
        self._looked.clear()

    @torch.no_grad()
    def generate(
        self, examples: Sequence[Example], sampling: Sampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """Returns `sampling.responses` actions that may follow each prompt, which ends with an observation."""
        wanted = [number for number in range(len(examples)) for _ in range(sampling.responses)]
        generators = _generators(wanted, sampling)
        found: list[list[Response]] = [[] for _ in examples]
        with evaluated(self.acting), self.gathered():
            for at in range(0, len(examples), self.batch_size):
                numbers = range(at, min(at + self.batch_size, len(examples)))
                said = self._said([examples[number] for number in numbers])
                own = [row for row, number in enumerate(wanted) if number in numbers]
                repeated = said.repeat_interleave(sampling.responses, 0)
                sampled = self.head.sample(repeated, sampling.temperature, [generators[row] for row in own])
                for row, number in enumerate(wanted[own[0] : own[-1] + 1]):
                    found[number].append(self._response(row, sampled))
        tell_whole(found, tell)
        return found

    def _said(self, examples: Sequence[Example]) -> Tensor:
        """What the actor says of the last observation of each prompt."""
        inputs = self._collate.inputs(examples, [(number, None) for number in range(len(examples))])
        seen = self._seen(inputs)
        seen = torch.cat([seen, seen.new_zeros(1, seen.shape[-1])])
        states = self.acting.over_time(seen[inputs.step_of.to(self.device)], inputs.previous.to(self.device))
        rows = torch.arange(len(states), device=states.device)
        return self.acting.actor(states[rows, inputs.ends.to(self.device)])

    def _seen(self, inputs: ActingInputs) -> Tensor:
        steps = inputs.steps
        goals = [steps.goals[number][steps.goal_mask[number]].numpy().tobytes() for number in range(len(steps.goals))]
        keys = [
            (look, goals[number]) for look, number in zip(inputs.looks.tolist(), steps.goal_of.tolist(), strict=True)
        ]
        first = {key: number for number, key in reversed(list(enumerate(keys))) if key not in self._looked}
        new = sorted(first.values())
        if new:
            made = self.acting.look(_some(steps, torch.tensor(new), self.device))
            self._looked |= {keys[number]: made[row] for row, number in enumerate(new)}
        return torch.stack([self._looked[key] for key in keys])

    def _response(self, row: int, sampled: Any) -> Response:
        if sampled.values is None:
            piece = acted(int(sampled.ids[row]), 1.0)
        else:
            said = torch.ones(self.spec.config.chunk, dtype=torch.bool)
            piece = acted(0, 1.0, sampled.values[row], said)
        response = Response(
            **{own.name: getattr(piece, own.name) for own in fields(piece)}, finished=True, version=self.version
        )
        response.per_unit['rollout'] = sampled.logprobs[row : row + 1].float()
        return replace(response, parts=self.spec.decode(response))


def _some(steps: Steps, chosen: Tensor, device: torch.device) -> Steps:
    """Some of what is observed."""
    return Steps(
        frames=steps.frames[chosen].to(device),
        goals=steps.goals.to(device),
        goal_mask=steps.goal_mask.to(device),
        goal_of=steps.goal_of[chosen].to(device),
        sensors={name: own[chosen].to(device) for name, own in steps.sensors.items()},
        state=None if steps.state is None else steps.state[chosen].to(device),
    )


def _generators(wanted: Sequence[int], sampling: Sampling) -> list[torch.Generator]:
    """What each row is sampled by: one generator for all, or with seeds of Examples one for each of them."""
    if sampling.seeds is None:
        return [torch.Generator().manual_seed(sampling.seed)] * len(wanted)
    places = [row % sampling.responses for row in range(len(wanted))]
    pairs = zip(wanted, places, strict=True)
    return [torch.Generator().manual_seed(seed_of(sampling.seeds[number], place)) for number, place in pairs]
