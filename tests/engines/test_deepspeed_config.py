"""What DeepSpeed refuses in a file is told before a model loads."""

from __future__ import annotations

import pytest

from align_anything.configs.deepspeed_files import deepspeed_file_names, load_deepspeed_config
from align_anything.core.errors import SettingsError
from align_anything.engines.deepspeed_config import check_zero


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
