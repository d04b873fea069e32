"""Episodes of several turns: generating them by vLLM, and learning from groups of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench import ours_online
from scripts.bench.compare import Found, in_turn, speed
from scripts.bench.measure import cpu_seconds, in_child, preload
from scripts.bench.online import GENERATIONS, LAYOUTS, argv_of, update
from scripts.bench.ours_online import Given
from scripts.bench.report import Ratio, say
from scripts.bench.work import Size, text_model, words, write_rows

PAIR = 'text_to_text'
TURNS = 4
STOPS = ('ba', 'be', 'bi')
"""About one word in thirteen has one of them, and ends a turn."""
WORLD = """
from align_anything.environments import Environment, Observation, Step


class World(Environment):
    def __init__(self, shown: str, turns: int):
        self.shown, self.turns = shown, turns

    def reset(self, row, seed):
        self.turn = 0
        return Observation()

    def step(self, said):
        self.turn += 1
        return Step(Observation(self.shown), reward=float(len(said.text) % 7), done=self.turn == self.turns)
"""


def episodes(folder: Path, size: Size) -> list[Ratio]:
    """Episodes of four turns by vLLM, which computes their histories again or not, and the update of GRPO on such."""
    # A group is work enough: it takes a minute.
    size = replace(size, groups=1, steps=1, rounds=1)
    # vLLM's kernels for a CPU want heads of 32 numbers or more.
    model = text_model(folder / 'model', size, heads=min(8, size.hidden // 32))
    source = random.Random(5)
    known = [word for word in words(size.words) if not any(stop in word for stop in STOPS)]

    def text(count: int) -> str:
        return ' '.join(source.choices(known, k=count))

    data = write_rows(
        folder / 'rows.jsonl', [{'prompt': text(size.group_prompt), 'response': 'x'} for _ in range(size.groups)]
    )
    (folder / 'world.py').write_text(WORLD, encoding='utf-8')
    preload('deepspeed', 'align_anything.trainers.runs.online')
    template = {'train_template': 'Instruction', 'train_template_kwargs': '{prompt: prompt, response: response}'}
    return [
        _generation(folder, model, data, size, template, text(size.group_prompt // 2)),
        _update(folder, model, data, size, template),
    ]


def _generation(folder: Path, model: Path, data: Path, size: Size, template: dict[str, Any], shown: str) -> Ratio:
    settings = {
        **template,
        'environment': f'{folder}/world.py:World',
        'environment_kwargs': f'{{shown: "{shown}", turns: {TURNS}}}',
        'reward_functions': '[]',
        'max_turns': TURNS,
        'stop': f'[{", ".join(STOPS)}]',
        'max_new_tokens': size.group_response,
        'model_max_length': 8 * size.group_prompt,
        'beta': 0,
        # All rollouts are of one policy.
        'learning_rate': 0,
        'use_vllm': True,
        'vllm_gpu_memory_utilization': 0.05,
    }
    rates = {}
    for name, caches in (('kept', True), ('computed again', False)):
        argv = argv_of(model, data, folder / name, size, vllm_enable_prefix_caching=caches, **settings)
        rates[name] = max(in_child(_tokens_a_second, argv) for _ in range(size.rounds))
    kept, again = rates.values()
    detail = f'{kept:.1f} against {again:.1f} generated tokens per CPU second'
    return Ratio(f'episodes of {TURNS} turns by vLLM: history kept / computed again', kept / again, 2.0, detail=detail)


def _tokens_a_second(argv: list[str]) -> float:
    """Tokens that the quickest rollout after the first generated in a CPU second."""
    from align_anything.reporting.metrics import METRICS_FILE, read_metrics

    _, phases = ours_online.train(PAIR, argv, 'grpo', seconds=cpu_seconds)
    output = Path(argv[argv.index('--output_dir') + 1])
    records = read_metrics(output / METRICS_FILE)
    tokens = [record['train/response_length'] * record['train/responses'] for record in records]
    turns = [record['train/turns'] for record in records]
    say(f'  {tokens[-1]:.0f} tokens in {turns[-1]:.2f} turns an episode')
    rates = [count / step['generation'] for count, step in zip(tokens, phases, strict=True)]
    return max(rates[1:])


@dataclass(frozen=True)
class GivenEpisodes(Given):
    """The same episodes to every prompt; `weights` are zero where the environment speaks."""

    weights: tuple[tuple[float, ...], ...] = ()

    def generate(self, examples: Sequence[Any], sampling: Any) -> list[list[Any]]:
        """Returns the episodes for each prompt, each token sampled as if it was certain."""
        import torch

        from align_anything.core.types import Response

        return [
            [
                Response(
                    torch.tensor(ids),
                    torch.tensor(own),
                    per_unit={'rollout': torch.zeros(int(sum(own)))},
                    finished=True,
                )
                for ids, own in zip(self.ids, self.weights, strict=True)
            ]
            for _ in examples
        ]


def _update(folder: Path, model: Path, data: Path, size: Size, template: dict[str, Any]) -> Ratio:
    given = _given(model, size)
    longest = max(map(len, given.ids))
    argvs = {
        layout: argv_of(
            model,
            data,
            folder / layout,
            size,
            layout=layout,
            beta=0,
            max_new_tokens=longest,
            model_max_length=2 * size.group_prompt + longest,
            **template,
        )  # fmt: skip
        for layout in LAYOUTS
    }
    sides: dict[str, Callable[[], Found]] = {
        layout: lambda argv=argv: in_child(update, PAIR, argv, given) for layout, argv in argvs.items()
    }
    done = in_turn(sides, size.rounds, size.groups * GENERATIONS * size.steps)
    return speed('GRPO update on episodes', done, *LAYOUTS, 1.5)


def _given(model: Path, size: Size) -> GivenEpisodes:
    """Episodes of one to four turns, what the environment shows twice as long as a turn."""
    from align_anything.models.pretrained_model import load_spec

    tokenizer, source = load_spec(str(model)).tokenizer, random.Random(7)
    ids = sorted({token for word in words(size.words // 2) for token in tokenizer(f' {word}')['input_ids']})
    turn, shown = size.group_response // 2, size.group_response
    made, weights = [], []
    for number in range(GENERATIONS):
        turns = 1 + number % TURNS
        own = [*([1.0] * turn + [0.0] * shown) * (turns - 1), *[1.0] * turn]
        made.append(source.choices(ids, k=len(own)))
        weights.append(tuple(own))
    return GivenEpisodes(made, [float(number % 3) for number in range(GENERATIONS)], weights=tuple(weights))
