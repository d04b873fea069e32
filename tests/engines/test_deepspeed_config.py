"""What DeepSpeed refuses in a file is told before a model loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.configs.deepspeed_files import deepspeed_file_names, load_deepspeed_config
from align_anything.core.errors import SettingsError
from align_anything.engines.deepspeed_config import check_sharing, check_zero, sharer_of
from tests.invariants.runs import assembled, fork, settings, train, zero_file


def test_a_section_of_zero_that_deepspeed_refuses() -> None:
    with pytest.raises(SettingsError) as caught:
        check_zero({'zero_optimization': {'stage': 2, 'overlap_com': True, 'reduce_bucket_size': -1}}, 'mine.json')
    assert [problem.split(': ')[1] for problem in caught.value.problems] == [
        'zero_optimization.reduce_bucket_size',
        'zero_optimization.overlap_com',
    ]


def test_files_that_ship_and_a_file_without_the_section_pass() -> None:
    for name in deepspeed_file_names():
        check_zero(load_deepspeed_config(name), name)
    check_zero({}, 'without')


@pytest.mark.parametrize(
    ('section', 'ranks', 'device_type', 'problem'),
    [
        ({'stage': 3, 'mics_shard_size': 8}, 16, 'cuda', 'mics_shard_size: DeepSpeed has no MiCS any more'),
        ({'stage': 2, 'zero_hpz_partition_size': 8}, 16, 'cuda', 'zero_hpz_partition_size has no effect under ZeRO'),
        ({'stage': 2, 'zero_quantized_gradients': True}, 16, 'cuda', 'zero_quantized_gradients has no effect under'),
        ({'stage': 3, 'zero_quantized_weights': True}, 16, 'cpu', 'zero_quantized_weights: its kernels'),
        ({'stage': 3, 'zero_hpz_partition_size': 8}, 12, 'cuda', 'zero_hpz_partition_size is 8, on 12 ranks'),
        ({'stage': 3, 'zero_hpz_partition_size': 8}, 8, 'cuda', 'zero_hpz_partition_size is 8, on 8 ranks'),
    ],
)
def test_what_of_zero_plus_plus_has_no_effect(
    section: dict[str, object], ranks: int, device_type: str, problem: str
) -> None:
    with pytest.raises(SettingsError, match=f'the DeepSpeed file mine.json: zero_optimization.{problem}') as caught:
        check_sharing({'zero_optimization': section}, 'mine.json', ranks=ranks, device_type=device_type)
    assert len(caught.value.problems) == 1


def test_what_of_zero_plus_plus_is_in_force_is_told() -> None:
    section = {'stage': 3, 'zero_hpz_partition_size': 8, 'zero_quantized_weights': True}
    file = {'zero_optimization': {**section, 'zero_quantized_gradients': False}}
    check_sharing(file, 'mine.json', ranks=16, device_type='cuda')
    check_zero(file, 'mine.json')
    assert sharer_of(file) == 'ZeRO stage 3, hpZ over 8 ranks, weights gathered in 8 bits'
    assert sharer_of({}) == 'ZeRO stage 0'


@pytest.mark.extended
def test_hpz_trains_as_stage_3_without_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny('llava')
    files = zero_file(tmp_path, 3), zero_file(tmp_path, 3, zero_hpz_partition_size=2)

    def work(rank: int) -> list[tuple[str, list[float]]]:
        runs = [assembled(settings(folder, 'llava', file), 'llava') for file in files]
        return [(run.in_force, train(run, folder, rank, ranks=4)) for run in runs]

    for (plain, expected), (told, found) in fork(work, 4):
        assert (plain, told) == ('ZeRO stage 3', 'ZeRO stage 3, hpZ over 2 ranks')
        assert expected[0] != pytest.approx(expected[1], rel=1e-3)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
