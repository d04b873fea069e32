"""Episodes that wait for nobody: engines that requests join, and environments of which one is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from align_anything.core.errors import TrainingError
from align_anything.core.types import Example, Response
from align_anything.environments import Environment, Observation, Said, Step
from align_anything.environments.base import Alone, BatchEnvironment
from align_anything.environments.hosts import Here
from align_anything.environments.pool import Pool
from align_anything.rollouts.at_own_pace import at_own_pace
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.episodes import Episodes
from align_anything.rollouts.vllm_client import Servers
from align_anything.rollouts.vllm_engine import Generated, Request, VLLMOptions
from align_anything.rollouts.vllm_loop import Loop
from align_anything.rollouts.wire import pack_generated, unpack
from tests.models.samples import load
from tests.rollouts.test_episodes import prompts

Tiny = Callable[..., Path]


class Counts:
    """An engine whose requests take as many steps as they say."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.go = threading.Semaphore(0)
        self.most, self.fails = 0, False

    def begin(self, asked: Mapping[str, int]) -> Callable[[], tuple[Counts, Sequence[str]]]:
        def begun() -> tuple[Counts, Sequence[str]]:
            if not all(asked.values()):
                raise TrainingError('no steps')
            self.left |= asked
            return self, [*asked]

        return begun

    def step(self) -> dict[str, Generated]:
        assert self.go.acquire(timeout=30)
        if self.fails:
            raise TrainingError('it died')
        self.most = max(self.most, len(self.left))
        self.left = {name: left - 1 for name, left in self.left.items()}
        done = [name for name, left in self.left.items() if not left]
        self.left = {name: left for name, left in self.left.items() if left}
        return {name: Generated([1], [([ord(name)], [0.0])]) for name in done}


def test_requests_join_those_that_run_and_weights_wait_for_all() -> None:
    loop, engine, order = Loop(), Counts(), []
    long = loop.generate(engine.begin({'a': 4, 'b': 1}))
    refused, short = loop.generate(engine.begin({'c': 0})), loop.generate(engine.begin({'d': 1}))
    engine.go.release(2)
    assert [one.responses[0][0] for one in short.result(30)] == [[ord('d')]] and not long.done()
    with pytest.raises(TrainingError, match='no steps'):
        refused.result(30)
    assert loop.doing is not None and loop.doing[0] == 'generating'
    weights = threading.Thread(target=lambda: loop.alone('weights', lambda: order.append((long.done(), late.done()))))
    weights.start()
    while loop._queue.empty():
        time.sleep(0.001)
    late = loop.generate(engine.begin({'e': 1}))
    engine.go.release(2)
    assert [one.responses[0][0] for one in long.result(30)] == [[ord('a')], [ord('b')]]
    weights.join(30)
    assert order == [(True, False)] and engine.most >= 2
    engine.go.release()
    assert len(late.result(30)) == 1 and loop.doing is None


def test_an_engine_that_dies_fails_all_that_run_and_none_that_come_later() -> None:
    loop, engine = Loop(), Counts()
    engine.fails = True
    running = [loop.generate(engine.begin({name: 2})) for name in 'ab']
    engine.go.release()
    for one in running:
        with pytest.raises(TrainingError, match='it died'):
            one.result(30)
    engine.fails, engine.left = False, {}
    engine.go.release()
    assert len(loop.generate(engine.begin({'c': 1})).result(30)) == 1
    with pytest.raises(ZeroDivisionError):
        loop.alone('dividing', lambda: 1 / 0)


def test_what_is_raised_first_ends_the_others_after_their_turn() -> None:
    turns: list[tuple[str, int]] = []
    failed = threading.Event()

    def goes_on(item: str, turn: int) -> bool:
        if item == 'fails':
            failed.set()
            raise TrainingError('gone')
        assert failed.wait(30)
        time.sleep(0.01)
        turns.append((item, turn))
        return True

    with pytest.raises(TrainingError, match='gone'):
        at_own_pace(['goes', 'fails'], goes_on)
    assert len(turns) <= 2
    at_own_pace([], goes_on)


class Waits(Environment):
    """Three turns; the slow ones answer when all others are over."""

    over = threading.Semaphore(0)

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self.turn, self.slow, self.fast = 0, row.get('slow'), row.get('fast', 0)
        return Observation('Begin.')

    def step(self, said: Said) -> Step:
        self.turn += 1
        if self.slow and self.turn == 1:
            for _ in range(self.fast):
                assert self.over.acquire(timeout=30), 'they wait for this one'
        if not self.slow and self.turn == 3:
            self.over.release()
        return Step(Observation(f'Turn {self.turn}.'), reward=1.0, done=self.turn == 3)


class Worlds(Here):
    """Three of them side by side, without a process."""

    lanes = 3

    def capacity(self, name: str) -> int | None:
        return 1

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        return Alone(Waits())


class Seeded:
    """Says what its seeds say; which thread asks, and with whom, makes no difference."""

    def __init__(self, end: int) -> None:
        self.end, self.seeds, self.probed = end, [], 0

    def probe(self, examples: Sequence[Example], sampling: Sampling) -> None:
        self.probed += 1

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        assert sampling.responses == 1
        made = []
        assert len(examples) == len(sampling.seeds)
        for seed in sampling.seeds:
            self.seeds.append(seed)
            ids = torch.tensor([40 + seed % 50, self.end])
            told = {'rollout': torch.zeros(2)}
            parts = [{'type': 'text', 'text': str(seed)}]
            made.append([Response(ids, torch.ones(2), per_unit=told, finished=True, version=1, parts=parts)])
        return made


def test_a_slow_environment_holds_nobody_up_and_nothing_hangs_on_who_is_first(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))

    def acted(slow: int | None) -> list[list[list[int]]]:
        engine = Seeded(spec.stop_token_ids[0])
        made = Episodes(
            engine,
            spec,
            Pool('waits', {}, host=Worlds()),
            max_turns=5,
            max_tokens=2000,
            in_step=False,
            at_own_pace=True,
        )
        examples = [
            replace(example, meta={'slow': number == slow, 'fast': 2}) for number, example in enumerate(prompts(spec))
        ]
        found = made.generate(examples, Sampling(responses=1, max_new_tokens=5, seed=3))
        assert made.failed() == [] and engine.probed == 1
        assert len(engine.seeds) == len({*engine.seeds}) == 9, 'one for each row, generation and turn'
        return [[response.ids.tolist() for response in own] for own in found]

    # With all in step the slow one would wait for the others, and they for it.
    first = acted(0)
    assert acted(2) == acted(None) == first


class Pair(BatchEnvironment):
    """Two episodes that go on together, the second one shorter."""

    capacity = 2
    asked: list[list[bool]] = []  # noqa: RUF012

    def reset(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Sequence[Observation]:
        self.turn = 0
        return [Observation('Begin.') for _ in rows]

    def step(self, said: Sequence[Said | None]) -> Sequence[Step | None]:
        self.turn += 1
        self.asked.append([own is not None for own in said])
        return [
            None if own is None else Step(Observation('Go on.'), reward=1.0, done=self.turn == 3 - number)
            for number, own in enumerate(said)
        ]


class Pairs(Here):
    """Makes them, without a file."""

    def capacity(self, name: str) -> int | None:
        return 2

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        return Pair()


def test_episodes_of_one_environment_go_on_together(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    engine, pool = Seeded(spec.stop_token_ids[0]), Pool('pairs', {}, host=Pairs())
    made = Episodes(engine, spec, pool, max_turns=5, max_tokens=2000, in_step=False, at_own_pace=True)
    Pair.asked.clear()
    found = made.generate(prompts(spec, 2), Sampling(responses=2, max_new_tokens=5, seed=3))
    assert made.failed() == []
    assert [[len(response.episode.turns) for response in own] for own in found] == [[3, 2], [3, 2]]
    assert sorted(Pair.asked) == [[True, False]] * 2 + [[True, True]] * 4


def test_media_go_to_a_server_once_and_ahead_of_those_that_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[tuple[str, list[str]]] = []
    entered, released = threading.Event(), threading.Event()

    def post(self: Servers, url: str, message: bytes) -> bytes:
        posted.append((url, sorted(unpack(message)[1])))
        if url.endswith('/media'):
            entered.set()
            assert released.wait(30)
            return b''
        return generated

    generated = pack_generated([Generated([1], [([2], [0.0])])])
    monkeypatch.setattr(Servers, '_post', post)
    monkeypatch.setattr(Servers, '_unreached', lambda self, url: None)
    servers = Servers(['http://a', 'http://b'], 'tiny', VLLMOptions('float32', 8), 5.0)

    def ask(*names: str, group: int = 0) -> None:
        picture = Image.new('RGB', (2, 3))
        media = {'multi_modal_data': {'image': [picture] * len(names)}, 'multi_modal_uuids': {'image': [*names]}}
        assert len(servers.generate([Request({'prompt_token_ids': [1], **media}, {'n': 1}, group)])) == 1

    threads = [threading.Thread(target=ask, args=('r/0/0', f'r/0/{number}')) for number in (1, 2)]
    threads[0].start()
    assert entered.wait(30)
    threads[1].start()
    time.sleep(0.05)
    assert posted == [('http://a/media', ['r/0/0', 'r/0/1'])], 'the other one waits for it'
    released.set()
    for thread in threads:
        thread.join(30)
    assert [names for url, names in posted if url == 'http://a/media'] == [['r/0/0', 'r/0/1'], ['r/0/2']]
    assert [names for url, names in posted if url == 'http://a/generate'] == [[], []]
    posted.clear()
    ask('r/0/1', 'r/0/2')
    ask('r/0/1', group=1)
    assert posted == [('http://a/generate', []), ('http://b/media', ['r/0/1']), ('http://b/generate', [])]
    posted.clear()
    # Another call, in which a server lets go of what was named before.
    ask('r/1/3')
    ask('r/0/1')
    assert [names for url, names in posted if url == 'http://a/media'] == [['r/1/3'], ['r/0/1']]
