"""A run goes on as the run that it was, or is refused."""

from __future__ import annotations

import json

import pytest

from align_anything.algorithms.sft import SFT
from align_anything.core.errors import SettingsError
from align_anything.trainers.launch import settings_of
from align_anything.trainers.loops.progress import Progress, manifest_of, resume_progress
from align_anything.trainers.pairs import PAIRS

RUN = ['--model_name_or_path', 'arm', '--train_datasets', 'kitchen', '--output_dir', 'out']
CHANGES = {
    'action_chunk': '2',
    'action_decoding': 'parallel',
    'action_states': '[arm]',
    'action_dataset': 'bridge',
    'sliding_window': '5',
    'windows': 'all',
}


def settings(*more: str) -> object:
    return settings_of(PAIRS['text_video_to_action'], SFT, [*RUN, *more], {}).cfgs


@pytest.mark.parametrize(('name', 'value'), CHANGES.items())
def test_what_an_action_is_and_what_a_row_is_stay(name: str, value: str) -> None:
    manifest = json.loads(json.dumps(manifest_of(Progress(step=3), settings())))
    assert resume_progress(manifest, settings(), 'slice_3').step == 3
    with pytest.raises(SettingsError, match=rf'{name} is .*, but slice_3 was written with'):
        resume_progress(manifest, settings(f'--{name}', value), 'slice_3')
