"""The first screen of README.md, install, train, chat, serve in that order, and what a stranger gets who follows it."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from align_anything.algorithms.sft import SFT
from align_anything.serve.settings import Chat, Serve
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS, find_pair
from scripts import stranger

README = (stranger.ROOT / 'README.md').read_text()
SCREEN = 60
"""Lines that are seen without much scrolling."""


def commands(step: str) -> list[list[str]]:
    lines = stranger.first_screen(README)[step].replace('\\\n', ' ').splitlines()
    return [shlex.split(line.rpartition('| ')[2]) for line in lines]


def test_install_train_chat_and_serve_stand_first_and_name_what_there_is() -> None:
    seen = '\n'.join(README.splitlines()[:SCREEN])
    places = [seen.index(block) for block in stranger.first_screen(README).values()]
    assert places == sorted(places)
    (*_, install), (make, train), (chat,), (serve,) = map(commands, ('install', 'train', 'chat', 'serve'))
    assert install[:3] == ['uv', 'pip', 'install'] and install[-1] == '.[serve]'
    assert make[:3] == ['python', '-m', 'align_anything.testing.tiny']
    assert train[:4] == ['align-anything', 'train', 'text_image_to_text', 'sft']
    trained = settings_of(PAIRS['text_image_to_text'], SFT, train[4:], {}).cfgs
    for name, kind, words in (('chat', Chat, chat), ('serve', Serve, serve)):
        assert words[:2] == ['align-anything', name]
        opened = settings_of(find_pair('any_to_any'), kind, words[2:], {}).cfgs
        assert opened.model_cfgs.model_name_or_path == trained.logger_cfgs.output_dir
    assert f':{stranger.PORT}/v1/chat/completions' in stranger.first_screen(README)['ask']
    assert f'pictures/{stranger.SHOWN}.png' in stranger.first_screen(README)['ask']


def test_another_first_screen_is_refused() -> None:
    with pytest.raises(stranger.StrangerError, match='no section'):
        stranger.first_screen('# align-anything\n')
    with pytest.raises(stranger.StrangerError, match='has 0 blocks'):
        stranger.first_screen(f'# align-anything\n{stranger.HEADING}\n## Installation\n')


def test_pictures_show_what_is_said_of_them() -> None:
    with Image.open(io.BytesIO(stranger.png(stranger.COLOURS['blue'], 3))) as picture:
        assert picture.size == (56, 56) and picture.getpixel((20, 20)) == stranger.COLOURS['blue']
        assert picture.getpixel((0, 0)) == picture.getpixel((50, 20)) == (255, 255, 255)


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(stranger.StrangerError, match='ended with code 3'):
        stranger.shell('exit 3\n', tmp_path, {})
    with pytest.raises(stranger.StrangerError, match='no answer from the server'):
        stranger.begin('false', stranger.free_port(), tmp_path, {'PATH': os.environ['PATH']})


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stranger_trains_chats_and_serves() -> None:
    """But for the clone and the installation."""
    script = stranger.ROOT / 'scripts' / 'stranger.py'
    done = subprocess.run([sys.executable, script, '--installed'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ('train', 'chat', 'serve, until it answers', 'ask', 'all of it'):
        assert f'\n{step} ' in done.stdout
