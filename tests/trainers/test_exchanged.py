"""Ranks of an online run exchange responses for equal work; each is still updated on once, with all that it has."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from align_anything.core.types import Example, Piece
from align_anything.datasets.balancing import unevenness
from align_anything.policies.token.collator import TokenCollator
from align_anything.trainers.loops.splitting import exchanged
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
        found = exchanged(own, TokenCollator(TextFamily(), layout).cost, keep_groups=keep_groups)
        told = [
            (int(item.prompt.ids[0]), [int(one.ids[0]) for one in item.responses], item.conversation is None)
            for item in found
        ]
        # What travels keeps its numbers, and what was even stays where it is.
        assert all(one.per_unit['advantage'].tolist() == one.ids.tolist() for item in found for one in item.responses)
        again = exchanged(found, TokenCollator(TextFamily(), layout).cost, keep_groups=keep_groups)
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
