"""How often a policy that acts by numbers reaches the disc, asked by the world and the policy alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from align_anything.core.types import Example, Message
from align_anything.environments.base import Said
from align_anything.environments.worlds.reach import INSTRUCTION, Reach
from align_anything.models.acting.pi0 import load_pi0_spec
from align_anything.models.acting.pi0_checkpoint import load_pi0
from align_anything.rollouts.flow import FlowRollouts, FlowSampling

UNSEEN = range(500_000, 500_200)
"""Seeds of tables that no run has seen."""


def told(message: Message) -> list[Message]:
    """What a policy without a history is shown."""
    pictures = [part for part in message['content'] if part['type'] == 'image']
    return [{**message, 'content': [{'type': 'text', 'text': INSTRUCTION}, *pictures]}]


def success(checkpoint: Path, seeds: Sequence[int] = UNSEEN, steps: int = 4) -> float:
    """The share of tables on which it reaches the disc, denoising without noise on the way."""
    spec = load_pi0_spec(checkpoint)
    model = load_pi0(checkpoint, torch.float32).eval()
    rollouts = FlowRollouts(model, spec, dtype=torch.float32, device=torch.device('cpu'), batch_size=64)
    tables = [Reach() for _ in seeds]
    shown = {
        number: table.reset({}, seed).messages[0]
        for number, (table, seed) in enumerate(zip(tables, seeds, strict=True))
    }
    reached = 0
    while shown:
        examples = [Example(spec.encode_prompt(told(message)), [], str(number)) for number, message in shown.items()]
        made = rollouts.generate(examples, FlowSampling(steps=steps))
        shown_next = {}
        for number, (response,) in zip(shown, made, strict=True):
            step = tables[number].step(Said('', actions=response.parts[0]['action']))
            reached += bool(step.info.get('success'))
            if not step.done:
                shown_next[number] = step.observation.messages[0]
        shown = shown_next
    return reached / len(seeds)
