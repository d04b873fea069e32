"""Episodes by a server of vLLM whose environments answer unevenly: each at its own pace, or all in step."""

from __future__ import annotations

import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.measure import in_child, preload
from scripts.bench.report import Ratio, say
from scripts.bench.work import Size, text_model, words

EPISODES, TURNS, TOKENS, ENDS = 16, 6, 64, 8
"""Of the model's tokens one of so many ends a turn."""
SLOW, SECONDS, QUICK = 8, 2.0, 0.02
"""One answer of so many is slow; seconds that it takes, and that others take."""
PATIENCE = 600.0
WORLD = f"""
import random
import time

from align_anything.environments import Environment, Observation, Step


class World(Environment):
    def reset(self, row, seed):
        self.turn, self.chance = 0, random.Random(repr((seed, row['episode'])))
        return Observation('Begin.')

    def step(self, said):
        time.sleep({SECONDS} if self.chance.randrange({SLOW}) == 0 else {QUICK})
        self.turn += 1
        return Step(Observation('Go on.'), reward=1.0, done=self.turn == {TURNS})
"""


def own_pace(folder: Path, size: Size) -> list[Ratio]:
    """Tokens a second on the wall of one server, rounds in pairs; the waiting of its environments is asleep."""
    model = text_model(folder / 'model', size, heads=min(8, size.hidden // 32))
    world = folder / 'world.py'
    world.write_text(WORLD, encoding='utf-8')
    preload('align_anything.rollouts.episodes', 'align_anything.rollouts.vllm_client')
    with _server(folder / 'server.log') as url:
        pairs = in_child(_rates, model, world, url, size)
    ratios = [own / step for own, step in pairs]
    own, step = pairs[ratios.index(statistics.median_low(ratios))]
    detail = f'{own:.1f} against {step:.1f} generated tokens a second, {len(pairs)} rounds'
    return [Ratio('episodes by a server: own pace / in step', statistics.median_low(ratios), 1.5, detail=detail)]


@contextmanager
def _server(log: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    with log.open('w') as file:
        argv = [sys.executable, '-m', 'align_anything.rollouts.vllm_server', '--port', str(port)]
        process = subprocess.Popen(argv, stdout=file, stderr=file)
    try:
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            with suppress(OSError), socket.create_connection(('127.0.0.1', port), 1):
                break
            time.sleep(0.5)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.terminate()
        process.wait()


def _rates(model: Path, world: Path, url: str, size: Size) -> list[tuple[float, float]]:
    """Tokens a second of episodes at their own pace and in step, in each round."""
    import torch

    from align_anything.core.types import Example
    from align_anything.environments.pool import Pool
    from align_anything.environments.workers import Workers
    from align_anything.models.handover import handed_over
    from align_anything.models.pretrained_model import load_model, load_spec
    from align_anything.rollouts.base import Sampling
    from align_anything.rollouts.episodes import Episodes
    from align_anything.rollouts.vllm import VLLMRollouts
    from align_anything.rollouts.vllm_client import Servers
    from align_anything.rollouts.vllm_engine import VLLMOptions

    spec = load_spec(str(model))
    policy = load_model(str(model), spec.components, dtype=torch.float32)
    servers = Servers([url], str(model), VLLMOptions('float32', 2048, memory=0.05), PATIENCE)
    engine = VLLMRollouts(spec, partial(handed_over, policy, dict), servers)
    engine.sync(0)
    pool = Pool(f'{world}:World', host=Workers(EPISODES))
    source, known = random.Random(5), words(size.words)
    examples = []
    for number in range(EPISODES):
        asked: Any = [{'role': 'user', 'content': [{'type': 'text', 'text': ' '.join(source.choices(known, k=32))}]}]
        prompt, meta = spec.encode_prompt(asked), {'episode': number}
        examples.append(Example(prompt, [], source=f'row {number}', conversation=asked, meta=meta))
    # Turns are of unequal lengths, and hardly one is clipped.
    spec.stop_token_ids = tuple(range(0, len(spec.tokenizer), ENDS))

    def rate(at_own_pace: bool, seed: int) -> float:
        made = Episodes(
            engine,
            spec,
            pool,
            max_turns=TURNS,
            max_tokens=2048,
            in_step=False,
            expands=True,
            at_own_pace=at_own_pace,
        )
        begun = time.perf_counter()
        found = made.generate(examples, Sampling(max_new_tokens=TOKENS, seed=seed))
        seconds = time.perf_counter() - begun
        units = sum(response.units for own in found for response in own)
        say(f'  {"own pace" if at_own_pace else "in step"}: {units} tokens in {seconds:.1f} s')
        return units / seconds

    rate(True, 0)
    pairs = [(rate(True, seed), rate(False, seed)) for seed in range(1, 1 + min(2, size.rounds))]
    pool.shut()
    return pairs
