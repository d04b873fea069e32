"""Policies that act by tokens, in environments: legal ids alone, scored as sampled, un-normalised when done."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.algorithms.dpo import DPO
from align_anything.configs.schema import RunCfgs
from align_anything.core.actions import ActionSpace
from align_anything.core.errors import SettingsError
from align_anything.core.types import Example, Piece, Scored
from align_anything.environments import Environment, Observation, Said, Step
from align_anything.environments.base import Alone, BatchEnvironment
from align_anything.environments.hosts import Here
from align_anything.environments.pool import Pool
from align_anything.models.family import FamilySpec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import LAYOUTS
from align_anything.policies.token.plan import require_parallel
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.decoded import DecodedRollouts
from align_anything.rollouts.episodes import Episodes
from align_anything.rollouts.experience import complete
from align_anything.rollouts.grammar import Emission
from align_anything.rollouts.hf import HFRollouts
from tests.models.acting import ARM, NAMED, acted, acting, episode
from tests.models.mixed import policy_of
from tests.models.samples import user

Tiny = Callable[..., Path]
KINDS = 'mm_token_type_ids'


class World(Environment):
    """Shows a picture in each step, its upper half red, and keeps what is done."""

    done: list[Said] = []

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self.turn, self.turns = 0, 2 + seed % 2
        return self.shown()

    def shown(self) -> Observation:
        pixels = np.zeros((56, 56, 3), np.uint8)
        pixels[:28, :, 0] = 200 + self.turn
        return Observation([{'role': 'user', 'content': [{'type': 'image', 'image': Image.fromarray(pixels)}]}])

    def step(self, said: Said) -> Step:
        self.turn += 1
        self.done.append(said)
        return Step(self.shown(), reward=1.0, done=self.turn == self.turns)


class Worlds(Here):
    """Makes them, without a file."""

    def capacity(self, name: str) -> int | None:
        return 1

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        return Alone(World())


def episodes(tiny: Tiny, spec: FamilySpec, **sampling: Any) -> tuple[list[Example], Any]:
    policy = policy_of(tiny('qwen2_5_vl'), spec, 'shared_prefix').eval()
    codecs = {kind: rules.open() for kind, rules in spec.codes.rules.items()}
    engine = DecodedRollouts(HFRollouts(policy.model, spec, dtype=torch.float32, batch_size=4), codecs)
    made = Episodes(engine, spec, Pool('world', host=Worlds()), max_turns=3, max_tokens=2000)
    made.sync(1)
    asked = [[user(f'Go to {index}.')] for index in range(3)]
    examples = [
        Example(spec.encode_prompt(turns), [], source=f'row {index}', conversation=turns)
        for index, turns in enumerate(asked)
    ]
    how = Sampling(responses=3, max_new_tokens=7, seed=1, emit=Emission({'action': None}, 'action'), **sampling)
    return complete(examples, made.generate(examples, how)), policy


AT_ONCE = replace(ARM, decoding='parallel')


@pytest.mark.parametrize(
    'space',
    [
        NAMED,
        replace(ARM, executed=1),
        # What one pass over placeholders samples, in tests/policies/test_at_once.py.
        pytest.param(replace(AT_ONCE, executed=1), marks=pytest.mark.extended),
    ],
)
def test_what_was_recorded_is_one_pass_among_legal_ids(space: ActionSpace, tiny: Tiny) -> None:
    spec = acting(tiny, 'qwen2_5_vl', space)
    World.done.clear()
    done, policy = episodes(tiny, spec)
    responses = [response for example in done for response in example.responses]
    first, size = spec.space.first_ids[0], max(spec.space.books)
    per_turn = space.chunk * len(spec.space.books)
    assert {len(response.episode.turns) for response in responses} == {2, 3}
    for response in responses:
        chosen = response.ids[response.weights > 0]
        assert len(chosen) == per_turn * len(response.episode.turns)
        assert bool(((chosen >= first) & (chosen < first + size)).all()) and response.finished
    recorded = torch.cat([response.per_unit['rollout'] for response in responses])
    assert recorded.exp().mean() > 0.5 / size, 'among the legal ids, not among all'
    for layout in LAYOUTS:
        own = policy if layout == 'shared_prefix' else policy_of(tiny('qwen2_5_vl'), spec, layout).eval()
        with torch.no_grad():
            found = own(TokenCollator(spec, layout)(done)).values
        assert float((found - recorded).abs().max()) < 1e-5, layout
    said = [said.actions for said in World.done]
    assert all(len(actions) == space.executed for actions in said)
    if space.names:
        assert {name for actions in said for name in actions.names} == {*space.names}
        return
    x, y, gripper = torch.cat([actions.values for actions in said]).t()
    # Un-normalised: the middle of a bin of what the statistics span, and the gripper as the bins have it.
    assert -2 < x.min() < 0 < x.max() < 2 and 0 < y.min() < 5 < y.max() < 10 and gripper.abs().max() < 1
    whole = responses[0].episode.turns[0].parts[0]['action']
    assert len(whole) == 2, 'a turn says the whole chunk'


@pytest.mark.extended
def test_seeds_of_rows_and_greedy_turns_at_once_are_the_same_again(tiny: Tiny) -> None:
    spec = acting(tiny, 'qwen2_5_vl', AT_ONCE)
    greedy, again = episodes(tiny, spec, temperature=0.0)[0], episodes(tiny, spec, temperature=0.0)[0]
    one, other = (episodes(tiny, spec, seeds=(4, 5, 6))[0] for _ in range(2))
    for mine, theirs in ((greedy, again), (one, other)):
        for left, right in zip(mine, theirs, strict=True):
            assert [own.ids.tolist() for own in left.responses] == [own.ids.tolist() for own in right.responses]
    assert len({tuple(own.ids.tolist()) for own in greedy[0].responses}) == 1
    assert len({tuple(own.ids.tolist()) for own in one[0].responses}) == 3


def test_an_environment_shows_pictures_as_the_data_did(tiny: Tiny) -> None:
    upright = acting(tiny, 'qwen2_5_vl', NAMED)
    turned = acting(tiny, 'qwen2_5_vl', replace(NAMED, pictures={'rotate': 180}))
    (plain, *_), (other, *_) = episodes(tiny, upright)[0], episodes(tiny, turned)[0]
    first, upside_down = (np.asarray(example.conversation[0]['content'][-1]['image']) for example in (plain, other))
    assert first[0, 0, 0] == 200 and upside_down[0, 0, 0] == 0 and np.array_equal(first[::-1, ::-1], upside_down)
    later = plain.responses[0].episode.messages[1], other.responses[0].episode.messages[1]
    one, two = (np.asarray(message['content'][-1]['image']) for message in later)
    assert np.array_equal(one[::-1, ::-1], two) and not np.array_equal(one, two)


def test_dpo_of_trajectories_is_the_sum_of_log_ratios_over_the_episode(tiny: Tiny) -> None:
    """In the form of TRL: `-log sigmoid(beta * (sum of log-ratios of the one, less that of the other))`."""
    spec = acting(tiny, 'qwen2_5_vl', ARM)
    chosen = episode(acted([1.0, 5.0, 1.0], [0.5, 2.0, 1.0]), acted([-1.0, 9.0, 0.0]))
    rejected = [*chosen[:1], *episode(acted([-2.0, 1.0, 0.0], [0.1, 2.0, 1.0]))[1:]]
    example = spec.encode_group([chosen, rejected])
    policy = policy_of(tiny('qwen2_5_vl'), spec, 'shared_prefix').eval()
    reference = policy_of(tiny('qwen2_5_vl', seed=3), spec, 'padded').eval()
    batch = policy.collate([example])
    with torch.no_grad():
        values = policy(batch).values
        batch.per_unit['reference'] = reference(reference.collate([example])).values
    terms = DPO(scale_coeff=2.0).terms(batch, Scored(values), {})
    # Of the last chunk of the chosen one, half is padding.
    assert [len(own) for own in batch.by_response(values)] == [9, 6]
    won, lost = (_log_ratio(policy, reference, spec, example, response) for response in example.responses)
    assert abs(won - lost) > 0.01
    wanted = math.log1p(math.exp(-2.0 * (won - lost)))
    assert float(terms['preference_loss']) == pytest.approx(wanted, rel=1e-4)
    assert float(terms['reward_margin']) == pytest.approx(2.0 * (won - lost), rel=1e-3)


def _log_ratio(policy: Any, reference: Any, spec: FamilySpec, example: Example, response: Piece) -> float:
    ours, theirs = (_log_probability(each.model, spec, example.prompt, response) for each in (policy, reference))
    return ours - theirs


def _log_probability(model: Any, spec: FamilySpec, prompt: Piece, response: Piece) -> float:
    """Of all actions of an episode, from the logits of one plain pass of transformers, each among the legal ids."""
    both = (prompt, response)
    ids = torch.cat([own.ids for own in both])[None]
    kinds = torch.cat([own.token_tensors.get(KINDS, spec.blank(KINDS, len(own))) for own in both])[None]
    media = spec.merge_media([own.media for own in both if own.media])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **{KINDS: kinds}, **media).logits[0]
    first, size, total = spec.space.first_ids[0], spec.space.bins, 0.0
    for at, weight in enumerate(response.weights.tolist()):
        if weight:
            row = logits[len(prompt) + at - 1, first : first + size].double().log_softmax(-1)
            total += float(row[int(response.ids[at]) - first])
    return total


@pytest.mark.extended
@pytest.mark.parametrize(
    ('family', 'refused'),
    [
        *((name, '') for name in ('llava', 'qwen3_vl', 'idefics3', 'internvl', 'smolvlm', 'idefics2', 'composed')),
        ('gemma3', 'see themselves by masks of their own'),
        ('gemma4', 'has a window of 64 tokens'),
        ('paligemma', 'make masks of their own'),
        ('mllama', 'make masks of their own'),
    ],
)
def test_families_say_turns_at_once_or_are_refused(family: str, refused: str, tiny: Tiny) -> None:
    spec = acting(tiny, family, AT_ONCE)
    cfgs = RunCfgs(model_cfgs={'model_name_or_path': family})
    if refused:
        with pytest.raises(SettingsError, match=refused):
            require_parallel(cfgs, spec, judges=False)
        return
    require_parallel(cfgs, spec, judges=False)
    for layout in ('shared_prefix', 'packed'):
        policy = policy_of(tiny(family), spec, layout)
        policy.collate = TokenCollator(spec, layout, ('image',))
        policy.check(policy, torch.device('cpu'))
        assert policy.collate.layout == layout
