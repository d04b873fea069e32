"""Runs whose micro-batches are filled by tokens."""

from __future__ import annotations

import pytest
import torch

from align_anything.models.work import tensors_of
from tests.trainers.runs import IMAGE, lines, run, sft, succeed, text_rows, weights, write_rows


def test_the_same_weights_on_one_rank_and_on_two(tiny, tmp_path):
    """A step of two micro-batches holds the same rows whoever computes them, so the token mean is the same."""
    rows = write_rows(tmp_path / 'rows.jsonl', [*text_rows(30), {'instruction': 'no answer', 'output': ''}])
    common = {'max_length_per_batch': 120, 'max_skipped_ratio': 0.1, 'num_workers': 1}
    succeed(sft(tmp_path / 'one', tiny('llama'), rows, gradient_accumulation_steps=2, **common))
    succeed(sft(tmp_path / 'two', tiny('llama'), rows, ds_cfgs='ds_z2_config.json', **common), ranks=2)
    one, two = (lines(tmp_path / name / 'metrics.jsonl') for name in ('one', 'two'))
    assert len(one) == len(two) > 3
    assert sum(record['train/samples'] for record in one) == 30
    for first, second in zip(one, two, strict=True):
        assert first['train/tokens'] == second['train/tokens'] <= 240
        assert first['train/loss'] == pytest.approx(second['train/loss'], rel=1e-4)
    trained = weights(tmp_path / 'two' / 'slice_end')
    for name, tensor in weights(tmp_path / 'one' / 'slice_end').items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=1e-4)
    assert [record['reason'] for record in lines(tmp_path / 'two' / 'skipped_samples.jsonl')] != []


def test_pictures_count_with_the_tower_that_reads_them(tiny, tmp_path):
    from PIL import Image

    Image.new('RGB', (56, 56), 'red').save(tmp_path / 'red.png')
    pictured = [{'instruction': f'{number} <image>', 'output': 'red', 'images': 'red.png'} for number in range(6)]
    rows = write_rows(tmp_path / 'rows.jsonl', [*pictured, *({**row, 'images': None} for row in text_rows(6))])
    argv = sft(tmp_path / 'run', tiny('llava'), rows, max_length_per_batch=100, ds_cfgs='ds_z3_config.json')
    succeed([*argv, '--train_template_kwargs.images', 'images'], ranks=2, pair=IMAGE)
    assert sum(record['train/samples'] for record in lines(tmp_path / 'run' / 'metrics.jsonl')) == 12


def test_positions_of_the_towers():
    # three pictures of 28 x 42 pixels in patches of 14: 3 x 2 x 3; two cut by the processor; a sound of 10 frames
    media = {
        'pixel_values': torch.zeros(3, 3, 28, 42),
        'pixel_values_videos': torch.zeros(2, 588),
        'input_features': torch.zeros(1, 32, 10),
    }
    assert tensors_of(media, patch_area=196) == (18 + 2, 5)


def test_streams_and_grouping_without_a_budget_are_refused(tiny, tmp_path):
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(2))
    stream = sft(tmp_path / 'run', tiny('llama'), rows, streaming=True, max_steps=1, max_length_per_batch=10)
    assert 'cannot be measured' in run(stream)[0].output
    assert 'max_length_per_batch' in run(sft(tmp_path / 'run', tiny('llama'), rows, group_by_length=True))[0].output
