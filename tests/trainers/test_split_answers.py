"""Runs over conversations whose answers need sequences of their own: every layout trains the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from align_anything.algorithms.dpo import DPO
from tests.harness.ranks import run_ranks
from tests.models.published import TOOL
from tests.trainers.runs import lines, sft, succeed, weights, write_rows
from tests.trainers.test_reference import opened, recorded, scores

SAID = ('Hello.', 'Goodbye.', 'Yes, of course.', 'It is five.')
CALL = {'role': 'assistant', 'content': None, 'tool_calls': [{'name': 'add', 'arguments': {'a': 2, 'b': 3}}]}


def conversations() -> list[dict]:
    """Chats of two answers; one with a thought in each, one with a call."""
    rows = []
    for number in range(4):
        turns = [('user', 'Hi.'), ('assistant', SAID[number]), ('user', 'Bye.'), ('assistant', SAID[number - 1])]
        rows.append({'messages': [{'role': role, 'content': f'{content} {number}'} for role, content in turns]})
    rows[1]['messages'][1]['reasoning_content'] = rows[1]['messages'][3]['reasoning_content'] = 'How kind.'
    rows[2]['messages'][1:2] = [CALL, {'role': 'tool', 'content': '5'}, rows[2]['messages'][1]]
    return [{**row, 'tools': [TOOL]} for row in rows]


def test_every_layout_trains_the_same(tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', conversations())
    found, kept = {}, {}
    for layout in ('auto', 'padded', 'packed'):
        argv = sft(
            tmp_path / layout, tiny('qwen3'), rows, template='Messages', layout=layout, model_max_length=512,
            gradient_accumulation_steps=2, per_device_train_batch_size=1,
        )  # fmt: skip
        output = succeed(argv)
        assert output.count('a sequence of its own') == 1
        found[layout] = [r for r in lines(tmp_path / layout / 'metrics.jsonl') if 'train/loss' in r]
        kept[layout] = weights(tmp_path / layout / 'slice_end')
    assert sum(record['train/samples'] for record in found['auto']) == 4
    assert found['auto'][-1]['train/skipped'] == 0
    # The history is computed once.
    assert found['auto'][0]['train/tokens'] < found['packed'][0]['train/tokens'] == found['padded'][0]['train/tokens']
    for layout in ('padded', 'packed'):
        losses = [[record['train/loss'] for record in found[name]] for name in (layout, 'auto')]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        for name, tensor in kept['auto'].items():
            torch.testing.assert_close(kept[layout][name], tensor, atol=2e-3, rtol=0)


def test_a_stored_reference_is_that_of_all_sequences(tiny, tmp_path: Path) -> None:
    pairs = [
        {'chosen': row['messages'], 'rejected': [*row['messages'][:-1], {'role': 'assistant', 'content': 'No.'}]}
        for row in conversations()
    ]
    other = [turn if turn['role'] != 'assistant' else {'role': 'assistant', 'content': 'Never.'} for turn in
             conversations()[0]['messages']]  # fmt: skip
    pairs.append({'chosen': conversations()[0]['messages'], 'rejected': other})
    rows = write_rows(tmp_path / 'rows.jsonl', [{**pair, 'tools': json.dumps([TOOL])} for pair in pairs])
    settings = {'model_max_length': 512, 'per_device_train_batch_size': 5, 'reference_cache_dir': tmp_path / 'scores'}

    def work(rank: int) -> None:
        stored = opened(DPO, tmp_path / 'stored', tiny('qwen3'), rows, **settings)
        assert [len(piece.earlier) for piece in stored.rows[4].responses] == [1, 1]
        assert 'reference' not in stored.roles
        batch = stored.batch(range(5))
        expected = scores(batch, stored.engine.infer)
        assert len(expected) == sum(piece.units for number in range(5) for piece in stored.rows[number].responses)
        torch.testing.assert_close(recorded(batch).values, expected, atol=1e-5, rtol=0)
        result = stored.engine.train_step([batch], stored.algorithm, stored.roles)
        assert result.applied and result.loss == pytest.approx(0.6931, abs=1e-3)

    run_ranks(work, 1, timeout=240)
