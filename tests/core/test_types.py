"""The vocabulary's few functions."""

from __future__ import annotations

import torch

from align_anything.core.types import Batch, Example, Piece, Scored, map_tensors


def piece(length: int) -> Piece:
    return Piece(ids=torch.arange(length), weights=torch.ones(length))


def test_lengths_add_up() -> None:
    # 3 prompt tokens + 4 + 5 response tokens = 12
    assert len(Example(prompt=piece(3), responses=[piece(4), piece(5)])) == 12


def test_map_tensors_reaches_every_depth_and_keeps_the_shape() -> None:
    value = {'a': [torch.ones(1), 'text'], 'b': (torch.zeros(2), piece(2))}
    result = map_tensors(value, lambda tensor: tensor + 1)
    assert result['a'][0].item() == 2 and result['a'][1] == 'text'
    assert result['b'][0].tolist() == [1, 1] and result['b'][1].ids.tolist() == [1, 2]
    assert value['b'][1].ids.tolist() == [0, 1]


def test_map_tensors_keeps_named_tuples() -> None:
    scored = map_tensors(Scored(torch.zeros(2), bootstrap=torch.ones(1)), lambda tensor: tensor + 1)
    assert isinstance(scored, Scored) and scored.values.tolist() == [1, 1]
    assert scored.entropy is None and scored.bootstrap.tolist() == [2]


def test_batch_moves_whole() -> None:
    empty = torch.empty(0)
    batch = Batch(
        inputs={'input_ids': torch.ones(1, 2)},
        segments=empty,
        weights=empty,
        num_responses=0,
        examples_of_responses=empty,
        sources=['rows.json:3'],
        metas=[{}],
        stats={'tokens': 2},
    )
    moved = batch.to('meta')
    assert moved.inputs['input_ids'].device.type == 'meta' and moved.weights.device.type == 'meta'
    assert moved.sources == ['rows.json:3'] and moved.stats == {'tokens': 2}
