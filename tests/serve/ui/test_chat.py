"""Conversations of the page: what is asked of the talkers, media in and out, and two side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from align_anything.core.errors import SampleError, SettingsError
from align_anything.serve.chat.talk import Talk
from align_anything.serve.ui.chat import Models, Session, chat_settings
from align_anything.serve.ui.paths import Root
from tests.serve.test_chat import Echo, texts


def session(folder: Path, *talkers: Echo) -> Session:
    return Session(Talk([talker.name for talker in talkers]), folder)


def test_media_go_in_and_out(tmp_path: Path) -> None:
    echo = Echo()
    current = session(tmp_path / 'media', echo)
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'red.png')
    current.talk.system = 'be brief'
    current.ask([echo], 'draw', [str(tmp_path / 'red.png')])
    assert list(current.answer([echo]))[-1] == {}
    assert texts(echo.got[0])[0] == 'system: be brief' and echo.got[0][1]['content'][0]['type'] == 'image'
    asked, answered = current.history(0)
    assert asked['content'] == [{'path': str(tmp_path / 'red.png')}, {'type': 'text', 'text': 'draw'}]
    text, medium = answered['content']
    assert text['text'] == 'echo: draw' and Image.open(medium['path']).size == (4, 3)
    current.ask([echo], 'and?', [])
    list(current.answer([echo]))
    assert len(echo.got[1]) == 4, 'what was said before'
    assert current.talk.take_back() and current.history(0)[-1]['role'] == 'user'


def test_what_cannot_be_asked_is_said_and_changes_nothing(tmp_path: Path) -> None:
    echo, current = Echo(), session(tmp_path, Echo())
    (tmp_path / 'a.wav').write_bytes(b'RIFF')
    (tmp_path / 'a.png').write_bytes(b'no picture')
    (tmp_path / 'a.txt').touch()
    for text, files, words in (
        (' ', [], 'write something'),
        ('x', ['a.wav'], 'reads no audio'),
        ('x', ['a.png'], 'not an image'),
        ('x', ['a.txt'], 'is no image, video or audio'),
    ):
        with pytest.raises(SampleError, match=words):
            current.ask([echo], text, [str(tmp_path / name) for name in files])
    assert current.history(0) == [] and current.talk.waiting == []


def test_two_are_asked_the_same_and_one_may_fail(tmp_path: Path) -> None:
    one, two = Echo('one'), Echo('two')
    two.answer = lambda turns, seed: (_ for _ in ()).throw(SampleError('cannot'))
    current = session(tmp_path, one, two)
    current.ask([one, two], 'hello', [])
    assert list(current.answer([one, two]))[-1] == {1: 'cannot'}
    assert [turn['role'] for turn in current.history(0)] == ['user', 'assistant'] and current.history(1) == []


def test_an_answer_grows_and_can_be_stopped(tmp_path: Path) -> None:
    echo = Echo(pause=0.01)
    current = session(tmp_path, echo)
    current.ask([echo], 'x' * 500, [])
    seen = []
    for _ in current.answer([echo]):
        seen.append(current.history(0)[-1]['content'][0]['text'])
        current.stopping.set()
    assert 0 < len(seen[-1]) < 400 and current.history(0)[-1]['role'] == 'assistant'


def test_a_checkpoint_is_opened_once_and_closed_when_others_are_asked_for(
    tmp_path: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny('qwen3')
    root = Root(source.parent)
    monkeypatch.chdir(root.folder)
    models, words = Models(root), ['--bf16', 'False', '--max_new_tokens', '4']
    (talker,) = models.talkers([source.name], words)
    assert models.talkers([source.name], words) == [talker]
    current = Session(Talk([talker.name]), tmp_path)
    current.ask([talker], 'hello', [])
    assert list(current.answer([talker]))[-1] == {} and len(current.history(0)) == 2
    other = models.talkers([source.name], [*words, '--temperature', '0.5'])
    assert other != [talker] and len(models._open) == 1
    models.close()
    assert not models._open


def test_settings_are_those_of_the_command(tmp_path: Path) -> None:
    root = Root(tmp_path)
    with pytest.raises(SettingsError, match="Did you mean 'temperature'"):
        chat_settings('m', ['--temperatur', '1'], root)
    for source, words, told in (
        ('', [], 'choose a checkpoint'),
        ('/etc', [], 'lies outside of'),
        ('m', ['--media_folder', '../x'], 'lies outside of'),
        ('m', ['--config', '/etc/x.yaml'], 'lies outside of'),
        ('m', ['--help'], 'lists the settings'),
        ('m', ['--compare', 'n'], 'tab Compare'),
    ):
        with pytest.raises(SettingsError, match=told):
            chat_settings(source, words, root)
