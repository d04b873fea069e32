"""The report of recorded episodes: they are replayed, with what was done drawn on them, and their actions counted."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.core.actions import Actions
from align_anything.core.types import Conversation
from align_anything.reporting.episodes import HEIGHT, animated_episode, drawn_episode
from align_anything.testing import episodes as made
from align_anything.testing.episodes import episodes
from tests.cli.test_inspection import inspect

Tiny = Callable[..., Path]


def animations(page: Path) -> list[Image.Image]:
    found = re.findall(r'data:image/gif;base64,([\w+/=]+)', page.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


def test_episodes_of_numbers(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made.write_lerobot(tmp_path / 'pusht', episodes(5, 8))
    more = ['--action_tokens', 'tail', '--action_bins', '2', '--sliding_window', '2', '--action_chunk', '2']
    page = inspect('text_video_to_action', tiny('qwen2_5_vl'), data, tmp_path, 'LeRobot', *more)
    told = capsys.readouterr().out
    for text in (page.text, told):
        assert '2 episodes; 13 steps of numbers, percentiles exact' in text
        assert "'gripper' of actions" in text and "'x' of actions" in text
    # A window is trained on, and the whole episode is shown.
    assert re.search(r'\[-?[\d.]+, -?[\d.]+, -?1\], \[', page.text) and 'push the square to the right' in page.text
    assert [animation.n_frames for animation in animations(tmp_path / 'inspect.html')] == [5, 8]
    assert json.loads((tmp_path / 'action_statistics.json').read_text())['actions']['pusht']['steps'] == 13


def test_named_actions(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made.write_steps(tmp_path / 'a', episodes(4, 4, 4, 4), named=True)
    page = inspect('text_video_to_action', tiny('qwen2_5_vl'), data, tmp_path, 'Steps', '--action_tokens', 'tail')
    assert '4 episodes; 16 named actions of 3 kinds' in page.text and 'steps by action' in page.text
    assert len(animations(tmp_path / 'inspect.html')) == 3
    assert 'move_ahead' in capsys.readouterr().out


def conversation(steps: int, **state: float) -> Conversation:
    turns: Conversation = []
    for step in range(steps):
        picture = Image.new('RGB', (40, 40), (0, 0, 40 + step))
        turns.append({'role': 'user', 'content': [{'type': 'image', 'image': picture}] * 2})
        turns[-1]['state'] = {name: (value,) for name, value in state.items()}
        done = Actions(torch.tensor([[float(step), 1.0]], dtype=torch.float64))
        turns.append({'role': 'assistant', 'content': [{'type': 'action', 'action': done}]})
    return turns


def test_a_step_shows_its_pictures_its_action_and_its_state() -> None:
    video = drawn_episode(conversation(3, arm=0.25))
    assert video.frames.shape[:3] == (3, HEIGHT + 2 * 12 + 8, 320)
    # Both cameras, each as high as the other.
    assert (video.frames[1, :HEIGHT, : 2 * HEIGHT] == (0, 0, 41)).all()
    told = video.frames[:, HEIGHT:]
    assert (told.max((1, 2, 3)) > 250).all() and (told[0] != told[1]).any()
    # Without a state there is a line less.
    assert drawn_episode(conversation(3)).frames.shape[1] == HEIGHT + 12 + 8
    assert Image.open(io.BytesIO(animated_episode(conversation(3)))).n_frames == 3


def test_a_long_episode_is_drawn_in_part_from_its_first_to_its_last_step() -> None:
    blues = drawn_episode(conversation(50), steps=6).frames[:, 0, 0, 2]
    assert blues.tolist() == [40, 50, 60, 69, 79, 89]
    assert drawn_episode([{'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]}]) is None


def test_text_that_the_font_has_not_is_no_fault() -> None:
    turns = conversation(1)
    turns[1]['content'][0]['action'] = Actions(names=('左转',))
    assert np.asarray(drawn_episode(turns).frames).shape[0] == 1
