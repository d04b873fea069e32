"""Episodes that vLLM generates: what was recorded is one pass of the policy, prefixes are reused, media go once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.environments import Environment, Observation, Said, Step
from align_anything.environments.base import Alone, BatchEnvironment
from align_anything.environments.hosts import Here
from align_anything.environments.pool import Pool
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import LAYOUTS
from align_anything.rollouts import vllm_client
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.episodes import Episodes
from align_anything.rollouts.experience import complete, joined
from align_anything.rollouts.vllm_engine import Generated, Request
from align_anything.rollouts.wire import unpack
from tests.harness.ranks import run_ranks
from tests.harness.servers import vllm_servers
from tests.harness.warm import import_vllm
from tests.models.mixed import policy_of
from tests.models.samples import load
from tests.rollouts.test_episodes import medium, prompts
from tests.rollouts.test_vllm import started

Tiny = Callable[..., Path]
TURNS = 4
pytestmark = pytest.mark.extended


@pytest.fixture(scope='module', autouse=True)
def vllm() -> None:
    import_vllm()


class Walk(Environment):
    """A medium in each of four turns at most; it ends sooner where an answer is odd."""

    shows = 'image'

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self.turn, self.seed = 0, seed
        return self.shown('Begin.')

    def shown(self, text: str) -> Observation:
        media = (
            [{'type': self.shows, self.shows: medium(self.shows, (self.turn + self.seed) % 4)}] if self.shows else []
        )
        # So long that a turn fills a block of those that are kept.
        return Observation([{'role': 'user', 'content': [*media, f'{text} ' + 'It is a long way to go. ' * 5]}])

    def step(self, said: Said) -> Step:
        self.turn += 1
        return Step(self.shown(f'Turn {self.turn}.'), done=self.turn == TURNS or len(said.text) % 7 == 3)


class Walks(Here):
    """Makes them, without a file."""

    def capacity(self, name: str) -> int | None:
        return 1

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        return Alone(Walk())


class Watched:
    """An engine, and what it was asked and answered."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.asked = engine, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        found = self.engine.generate(requests)
        self.asked.append(list(zip(requests, found, strict=True)))
        return found


@pytest.mark.parametrize(
    ('family', 'shows'),
    [
        ('qwen2', ''),
        ('qwen2_5_vl', 'image'),
        ('llava_onevision', 'image'),
        ('qwen2_vl', 'video'),
        ('qwen2_5_vl', 'video'),
        ('qwen2_audio', 'audio'),
    ],
)
def test_episodes_of_four_turns_with_media(family: str, shows: str, tiny: Tiny) -> None:
    # vLLM wants sounds as long as those that the model was published for.
    how = {'sound_seconds': 30} if shows == 'audio' else {}
    run_ranks(four_turns, 1, args=(tiny(family, **how), shows))


@pytest.mark.parametrize('shows', ['image', 'video'])
def test_servers_are_sent_each_medium_once(shows: str, tiny: Tiny) -> None:
    with vllm_servers(2) as (urls, _):
        run_ranks(four_turns, 1, args=(tiny('qwen2_5_vl'), shows, urls))


def turn_of(request: Request, generated: Generated, asked: Sequence[tuple[Request, Generated]]) -> int:
    """How many other prompts of its row it goes on from."""
    ids = request.prompt['prompt_token_ids']
    begun = {tuple(other.prompt['prompt_token_ids']) for other, _ in asked}
    return sum(own == tuple(ids[: len(own)]) and len(own) < len(ids) for own in begun)


def four_turns(rank: int, folder: Path, shows: str, servers: Sequence[str] = ()) -> None:
    spec = load(folder)
    spec.stop_token_ids = (*spec.stop_token_ids, *range(40, 120))
    policies = {layout: policy_of(folder, spec, layout).eval() for layout in LAYOUTS}
    rollouts = started(folder, spec, policies['padded'].model, servers)
    Walk.shows = shows
    sent: list[tuple[str, int]] = []
    pack = vllm_client.pack_requests

    def packed(requests: Sequence[Request], held: Any) -> bytes:
        message = pack(requests, held)
        sent.extend((name, tensor.numel()) for name, tensor in unpack(message)[1].items())
        return message

    vllm_client.pack_requests = packed
    rollouts.engine = watched = Watched(rollouts.engine)
    episodes = Episodes(
        rollouts,
        spec,
        Pool('walk', {}, host=Walks()),
        max_turns=TURNS,
        max_tokens=2000,
        in_step=False,
        expands=True,
        at_own_pace=bool(servers),
        max_failures=0.0,
    )
    examples = prompts(spec)
    for version in range(2):
        episodes.sync(version)
        sent.clear()
        watched.asked.clear()
        sampling = Sampling(responses=3, max_new_tokens=6, seed=version)
        done = complete(examples, episodes.generate(examples, sampling))
        assert episodes.failed() == []
        responses = [response for example in done for response in example.responses]
        turns = [len(response.episode.turns) for response in responses]
        assert {TURNS} < {*turns}, turns
        recorded = joined(done, 'rollout')
        for layout, policy in policies.items():
            with torch.no_grad():
                found = policy(TokenCollator(spec, layout)(done)).values
            # Attention of vLLM rounds the more the longer a prompt is; what a medium makes is ten times as much.
            torch.testing.assert_close(recorded, found, atol=2e-3, rtol=0.0)
        asked = [pair for own in watched.asked for pair in own]
        by_turn = [[pair for pair in asked if turn_of(*pair, asked) == turn] for turn in range(TURNS)]
        every = len(turns) if servers else len(examples)
        assert [len(own) for own in by_turn] == [every, *(sum(own > turn for own in turns) for turn in (1, 2, 3))]
        # One call for each turn, or for each of an episode.
        assert len(watched.asked) == (len(asked) if servers else TURNS)
        # Whatever was computed in the last one, but for what fills no block, is not again.
        for _, generated in (pair for own in by_turn[1:] for pair in own):
            assert generated.cached >= 32, [[one.cached for _, one in own] for own in by_turn]
        last = [(len(generated.prompt_ids), generated.cached) for _, generated in by_turn[-1]]
        assert all(cached > length / 2 for length, cached in last), last
        if servers:
            names = [name for name, _ in sent]
            shown = sum(turns) - len(turns) + len(examples)
            assert len(names) == len({*names}) == shown
        again = complete(examples, episodes.generate(examples, sampling))
        assert [r.ids.tolist() for e in again for r in e.responses] == [response.ids.tolist() for response in responses]
        assert episodes.failed() == []
        with torch.no_grad():
            for parameter in (own for policy in policies.values() for own in policy.model.parameters()):
                parameter.mul_(1.03)
