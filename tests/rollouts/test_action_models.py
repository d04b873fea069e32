"""Models that act in an environment: what was recorded is one pass, pictures are looked at once, seeds are heeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.types import Example
from align_anything.environments.base import Alone, BatchEnvironment
from align_anything.environments.hosts import Here
from align_anything.environments.pool import Pool
from align_anything.models.acting.spec import ActionSpec, ActionTurns
from align_anything.rollouts.acting import ActionRollouts
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.episodes import Episodes
from align_anything.rollouts.experience import complete
from tests.policies.acting.worlds import NAMED, NUMBERS, Line, Pushed, policy_in, small

SAMPLING = Sampling(responses=4, max_new_tokens=1, seed=3)


class Lines(Here):
    """Makes lines, without a file."""

    def __init__(self, kind: type[Line]) -> None:
        self.kind = kind

    def capacity(self, name: str) -> int | None:
        return 1

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        return Alone(self.kind(**kwargs))


def acting(folder: Path, **settings: Any) -> tuple[Episodes, Any, ActionSpec]:
    policy, spec = policy_in(folder)
    engine = ActionRollouts(policy.model, spec, policy.collate.head, device=torch.device('cpu'), batch_size=3)
    made = Episodes(
        engine,
        spec,
        Pool('line', host=Lines(Pushed if spec.space.dimensions else Line)),
        max_turns=6,
        max_tokens=64,
        encoder=ActionTurns(spec),
        **settings,
    )
    made.sync(5)
    return made, policy.eval(), spec


def prompts(spec: ActionSpec, number: int = 4) -> list[Example]:
    asked = [[{'role': 'user', 'content': [{'type': 'text', 'text': 'go to the left'}]}] for _ in range(number)]
    return [
        Example(spec.encode_prompt(conversation), [], source=f'row {index}', conversation=conversation)
        for index, conversation in enumerate(asked)
    ]


@pytest.mark.parametrize(('space', 'config'), [(NAMED, {}), (NUMBERS, {'head': 'gaussian'})])
def test_what_was_recorded_is_one_pass_over_the_episode(space: Any, config: dict[str, Any], tmp_path: Path) -> None:
    made, policy, spec = acting(small(tmp_path / 'model', space, **config))
    examples = prompts(spec)
    done = complete(examples, made.generate(examples, SAMPLING))
    responses = [response for example in done for response in example.responses]
    assert len({len(response.episode.turns) for response in responses}) > 1, 'episodes differ in length'
    with torch.no_grad():
        found = policy(policy.collate(done)).values
    recorded = torch.cat([response.per_unit['rollout'] for response in responses])
    assert len(found) == len(recorded) and float((found - recorded).abs().max()) < 1e-5
    for response in responses:
        turns = response.episode.turns
        assert response.units == len(turns) and len(response) == 2 * len(turns) - 1 == turns[-1].stop
        said = [message for message in response.episode.messages if message['role'] == 'assistant']
        assert [len(message['content'][0]['action']) for message in said] == [space.chunk] * len(turns)


def test_each_picture_is_looked_at_once_until_weights_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, policy, spec = acting(small(tmp_path / 'model'))
    looked: list[int] = []
    inner = policy.model.look
    monkeypatch.setattr(policy.model, 'look', lambda steps: looked.append(len(steps.frames)) or inner(steps))
    examples = prompts(spec)
    made.generate(examples, SAMPLING)
    frames = {look for key in made.engine._looked for look in key[:1]}
    assert sum(looked) == len(frames) < 7 * 2 + 1, 'there are seven places and two that are hot'
    made.generate(examples, SAMPLING)
    assert sum(looked) == len(frames) or max(looked) < len(frames)
    before = sum(looked)
    made.sync(6)
    made.generate(examples, SAMPLING)
    assert sum(looked) > before


def test_seeds_and_the_likeliest_action(tmp_path: Path) -> None:
    made, _, spec = acting(small(tmp_path / 'model'))
    examples = prompts(spec)

    def ids(sampling: Sampling, examples: list[Example] = examples) -> list[list[list[int]]]:
        return [[response.ids.tolist() for response in own] for own in made.generate(examples, sampling)]

    assert ids(SAMPLING) == ids(SAMPLING) != ids(replace(SAMPLING, seed=4))
    greedy = ids(replace(SAMPLING, temperature=0.0))
    assert all(own[0] == other for own in greedy for other in own)
    seeded = replace(SAMPLING, seeds=(1, 2, 3, 4))
    assert ids(seeded)[1] == ids(replace(SAMPLING, seeds=(2,)), examples[1:2])[0], 'no row hangs on the others'
