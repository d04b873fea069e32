"""Ranks of an online run exchange responses for equal work; each is still updated on once, with all that it has."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align_anything.core.types import COMPANION, Cost, Example, Piece, Scored
from align_anything.datasets.balancing import unevenness
from align_anything.policies.token.collator import TokenCollator
from align_anything.trainers.loops.scoring import Scoring, score
from align_anything.trainers.loops.splitting import exchanged, exchanged_and_filled
from tests.harness.ranks import run_ranks
from tests.policies.stub import TextFamily

RANKS = 4


def rollout(rank: int) -> list[Example]:
    """Four prompts with three responses each; those of the last rank are the longest by far."""
    generator = torch.Generator().manual_seed(rank)

    def response(number: int) -> Piece:
        length = int(torch.randint(5, 15, (), generator=generator)) * (1 + 2 * (rank == RANKS - 1))
        piece = Piece(torch.full((length,), 100 * rank + number), torch.ones(length))
        piece.per_unit['advantage'] = torch.full((length,), float(100 * rank + number))
        return piece

    asked = [{'role': 'user', 'content': []}]
    return [
        Example(
            Piece(torch.full((20,), 100 * rank + prompt), torch.zeros(20)),
            [response(3 * prompt + number) for number in range(3)],
            conversation=asked,
        )
        for prompt in range(4)
    ]


def taken(examples: list[Example], layout: str) -> float:
    return sum(TokenCollator(TextFamily(), layout).cost(example).work for example in examples)


@pytest.mark.parametrize(('layout', 'keep_groups'), [('padded', False), ('shared_prefix', False), ('packed', True)])
def test_ranks_exchange_responses_for_equal_work(layout: str, keep_groups: bool) -> None:
    def body(rank: int) -> tuple[list[tuple[int, list[int], bool]], float, bool]:
        own = rollout(rank)
        found = exchanged(own, TokenCollator(TextFamily(), layout).cost, keep_groups=keep_groups).examples
        told = [
            (int(item.prompt.ids[0]), [int(one.ids[0]) for one in item.responses], item.conversation is None)
            for item in found
        ]
        # What travels keeps its numbers, and what was even stays where it is.
        assert all(one.per_unit['advantage'].tolist() == one.ids.tolist() for item in found for one in item.responses)
        again = exchanged(found, TokenCollator(TextFamily(), layout).cost, keep_groups=keep_groups).examples
        return told, taken(found, layout), len(again) == len(found)

    told, loads, stayed = zip(*run_ranks(body, RANKS), strict=True)
    before = [taken(rollout(rank), layout) for rank in range(RANKS)]
    assert unevenness(before) > 1.2 and unevenness(loads) < (1.05 if layout == 'padded' else 1.1) and all(stayed)
    responses = sorted(chain(*(numbers for own in told for _, numbers, _ in own)))
    assert responses == sorted(
        int(one.ids[0]) for rank in range(RANKS) for item in rollout(rank) for one in item.responses
    )
    together = keep_groups or layout == 'shared_prefix'
    assert all((len(numbers) == 3) == together for own in told for _, numbers, _ in own)
    for rank, own in enumerate(told):
        assert all(bare == (prompt // 100 != rank) for prompt, _, bare in own)


PICTURES = 'pixels'
BUDGET = 200


def mixed(rank: int) -> list[Example]:
    """Texts of several lengths, those of one rank with pictures, and one rank that has nearly nothing."""
    made = [one for one in rollout(rank)[: 1 if rank == 1 else 4]]
    for example in made if rank == 0 else ():
        for response in example.responses:
            response.media[PICTURES] = torch.ones(30)
    return made


def cost(example: Example) -> Cost:
    lengths = [len(example.prompt) + len(response) for response in example.responses]
    towers = sum(float(response.media.get(PICTURES, torch.zeros(0)).sum()) for response in example.responses)
    return Cost(len(lengths), max(lengths), sum(lengths) + towers, towers=towers)


def size(examples: list[Example]) -> int:
    return sum(cost(example).rows * cost(example).length for example in examples)


class Passes:
    """Scores each unit by its prompt and its id, predicts twice that, and remembers what it was asked."""

    def __init__(self) -> None:
        self.work: list[float] = []

    def collate(self, examples: list[Example]) -> Any:
        self.work.append(sum(cost(example).work for example in examples))
        pieces = [one.ids + 1000.0 * example.prompt.ids[0] for example in examples for one in example.responses]
        values = torch.cat([torch.zeros(0), *pieces])
        lengths = [len(one) for one in pieces]
        made = SimpleNamespace(values=values, ends=torch.tensor([float(one[-1]) for one in pieces]))
        made.to, made.by_response = lambda device: made, lambda numbers: numbers.split(lengths)
        return made

    def scored(self, batch: Any) -> Scored:
        return Scored(batch.values, prediction=2 * batch.values, bootstrap=batch.ends)


def test_scores_of_what_other_ranks_computed_come_back() -> None:
    def body(rank: int) -> tuple[float, int, float]:
        examples, passes = mixed(rank), Passes()
        scoring = Scoring('old', passes.scored, passes.collate, torch.device('cpu'))
        found = score(examples, *exchanged_and_filled(examples, BUDGET, size, cost), [scoring])
        responses = [(example, one) for example in examples for one in example.responses]
        for example, one in responses:
            wanted = one.ids + 1000.0 * example.prompt.ids[0]
            assert torch.equal(one.per_unit['old'], wanted) and torch.equal(one.media[f'{COMPANION}old'], 2 * wanted)
        assert found['old'].tolist() == [float(one.per_unit['old'][-1]) for _, one in responses]
        return sum(passes.work), len(passes.work), max(passes.work)

    loads, numbers, largest = zip(*run_ranks(body, RANKS), strict=True)
    before = [sum(cost(example).work for example in mixed(rank)) for rank in range(RANKS)]
    assert unevenness(before) > 1.5 and unevenness(loads) <= 1.05
    assert len(set(numbers)) == 1 and sum(loads) == sum(before) and max(largest) < sum(before) / RANKS
