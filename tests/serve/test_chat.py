"""Conversations in the terminal: with a talker that says things back, with tiny checkpoints, and with a server."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from align_anything.core.actions import Actions
from align_anything.core.errors import ModelError, SampleError, SettingsError
from align_anything.core.types import Audio, MediaKind, Message, Video
from align_anything.serve.app import Server
from align_anything.serve.chat import graphics
from align_anything.serve.chat.loop import Chat
from align_anything.serve.chat.run import chat, line_reader
from align_anything.serve.chat.screen import Screen
from align_anything.serve.chat.talkers import sent
from align_anything.serve.door import KEY_VARIABLE, Keys
from tests.serve.common import SMALL, Parrot, listening

RED = Image.new('RGB', (40, 30), 'red')
BLUE = Image.new('RGB', (4, 3), 'blue')
KEY = 'my-very-secret-key'


class Echo:
    """Says what it was asked, and shows media where it is asked to; keeps all that it got."""

    def __init__(self, name: str = 'echo', pause: float = 0.0) -> None:
        self.name, self.pause = name, pause
        self.got: list[list[Message]] = []
        self.seeds: list[int] = []

    def check(self, kind: MediaKind) -> None:
        if kind != 'image':
            raise SampleError(f'{self.name} reads no {kind}.')

    def answer(self, turns: Sequence[Message], seed: int) -> Iterator[dict[str, Any]]:
        self.got.append(list(turns))
        self.seeds.append(seed)
        text = ''.join(part['text'] for part in turns[-1]['content'] if part['type'] == 'text')
        if text == 'fail':
            raise SampleError('cannot')
        if text == 'hush':
            return
        for letter in f'{self.name}: {text}':
            time.sleep(self.pause)
            yield {'type': 'text', 'text': letter}
        made = {'draw': ('image', BLUE), 'sing': ('audio', Audio(numpy.zeros(1600, numpy.float32), 8000))}
        frames = numpy.zeros((2, 16, 16, 3), numpy.uint8)
        made['film'] = ('video', Video(frames, numpy.array([0.0, 0.5]), 2.0))
        if text in made:
            kind, medium = made[text]
            yield {'type': kind, kind: medium}


def talk(lines: Sequence[str], talkers: Sequence[Any], folder: Path, show: Any = None) -> tuple[str, Chat]:
    out = io.StringIO()
    conversation = Chat(talkers, Screen(out, folder, show))
    conversation.run(line_reader(io.StringIO('\n'.join(lines) + '\n')))
    return out.getvalue(), conversation


def texts(turns: Sequence[Message]) -> list[str]:
    return [f'{turn["role"]}: ' + ''.join(part.get('text', '') for part in turn['content']) for turn in turns]


def test_several_turns_a_system_prompt_and_lines_that_go_on(tmp_path: Path) -> None:
    echo = Echo()
    shown, _ = talk(['/system be brief', 'one \\', 'two', '//slash', '', '/quit', 'never'], [echo], tmp_path)
    assert 'echo: one \ntwo\necho: /slash\n' in shown and 'never' not in shown
    assert texts(echo.got[-1]) == ['system: be brief', 'user: one \ntwo', 'assistant: echo: one \ntwo', 'user: /slash']
    _, again = talk(['/system x', '/system', 'hi', '/reset', 'ho'], [echo], tmp_path)
    assert texts(echo.got[-1]) == ['user: ho'] and again.talk.system == ''


def test_retry_answers_anew_with_another_seed(tmp_path: Path) -> None:
    echo = Echo()
    shown, conversation = talk(['/retry', 'hi', '/retry', 'ho'], [echo], tmp_path)
    assert 'no answer to give anew' in shown
    assert texts(echo.got[0]) == texts(echo.got[1]) == ['user: hi'] and echo.seeds[0] != echo.seeds[1]
    assert len(echo.got[2]) == 3 and len(conversation.talk.turns[0]) == 4


def test_an_empty_answer_is_told_as_one(tmp_path: Path) -> None:
    shown, _ = talk(['hush', 'hi', 'draw', 'fail'], [Echo()], tmp_path)
    assert shown.count('(an empty answer)') == 1 and shown.startswith('(an empty answer)\necho: hi')


def test_retry_asks_those_too_who_said_nothing(tmp_path: Path) -> None:
    class Silent(Echo):
        def answer(self, turns: Sequence[Message], seed: int) -> Iterator[dict[str, Any]]:
            self.got.append(list(turns))
            yield from ({'type': 'text', 'text': 'yes'} for _ in range(len(self.got) != 2))

    silent = Silent('silent')
    _, conversation = talk(['hi', 'ho', '/retry'], [Echo(), silent], tmp_path)
    assert texts(silent.got[2]) == ['user: hi', 'assistant: yes', 'user: ho']
    assert [len(own) for own in conversation.talk.turns] == [4, 4]
    (tmp_path / 'talk.json').write_text('[{"messages": [{"role": "assistant", "content": "hello"}]}]')
    shown, _ = talk([f'/load {tmp_path}/talk.json', '/retry', 'hi'], [Echo()], tmp_path)
    assert 'no answer to give anew' in shown and 'echo: hi' in shown


def test_media_that_cannot_be_written_end_no_conversation(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    for talkers in ([Echo()], [Echo(), Echo('other')]):
        shown, _ = talk(['draw', 'hi'], talkers, tmp_path / 'file')
        assert '! the image cannot be written to' in shown and 'echo: hi' in shown


def test_media_wait_for_the_next_message(tmp_path: Path) -> None:
    picture = tmp_path / 'a red one.png'
    RED.save(picture)
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    echo = Echo()
    lines = [f'/image {picture}', 'what?', f'/image "{picture}"', '', '/audio x.wav', '/image', '/image nowhere.png']
    shown, _ = talk([*lines, f'/image {tmp_path}/broken.png', 'and now?'], [echo], tmp_path)
    kinds = [[part['type'] for part in turns[-1]['content']] for turns in echo.got]
    assert kinds == [['image', 'text'], ['image'], ['text']]
    for words in ('reads no audio', '/image needs a path', 'does not exist', 'is not an image'):
        assert words in shown


def test_what_is_wrong_is_one_line_and_the_conversation_goes_on(tmp_path: Path) -> None:
    echo = Echo()
    shown, conversation = talk(['/imag x', 'fail', 'hi', '/load nowhere.json', '/save', '/help'], [echo], tmp_path)
    for line in ("! there is no command '/imag'. Did you mean 'image'?", '! cannot', '! nowhere.json cannot be read'):
        assert line in shown
    assert texts(conversation.talk.turns[0]) == ['user: hi', 'assistant: echo: hi'] and '/retry' in shown


def test_generated_media_are_written_and_their_paths_shown(tmp_path: Path) -> None:
    folder = tmp_path / 'made'
    shown, conversation = talk(['draw', 'sing', 'film', 'draw', 'why?'], [Echo()], folder, show=graphics.kitty)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ['audio_0001.wav', 'image_0001.png', 'image_0002.png', 'video_0001.mp4']
    assert all(f'{folder / name}]' in shown for name in names) and shown.count('\x1b_Ga=T') == 2
    assert Image.open(folder / 'image_0001.png').tobytes() == BLUE.tobytes()
    file = tmp_path / 'talk.json'
    conversation.talk.save(file)
    (record,) = json.loads(file.read_text())
    assert record['messages'][1]['content'][1] == {'type': 'image', 'image': str(folder / 'image_0001.png')}
    echo = Echo()
    talk([f'/load {file}', 'and?'], [echo], tmp_path)
    assert len(echo.got[0]) == 11 and echo.got[0][1]['content'][1]['image'] == str(folder / 'image_0001.png')


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{',
        '[]',
        '[{"messages": [{"role": "bard", "content": "x"}]}]',
        '[1]',
        '[{}, {}, {}]',
        '[{"messages": [{"role": "system", "content": []}]}]',
    ],
)
def test_other_files_are_no_conversations(tmp_path: Path, text: str) -> None:
    file = tmp_path / 'x.json'
    file.write_text(text)
    shown, conversation = talk(['hi', f'/load {file}'], [Echo()], tmp_path)
    assert '! ' in shown and len(conversation.talk.turns[0]) == 2, 'what was said stays'


def test_two_are_shown_side_by_side_with_a_history_each(tmp_path: Path) -> None:
    one, two = Echo('one'), Echo('two')
    shown, conversation = talk(['hello', 'fail', 'draw'], [one, two], tmp_path)
    row = next(line for line in shown.splitlines() if 'one: hello' in line)
    assert 'two: hello' in row and '! one: cannot' in shown and '! two: cannot' in shown
    assert texts(one.got[-1]) == ['user: hello', 'assistant: one: hello', 'user: draw']
    assert texts(two.got[-1]) == ['user: hello', 'assistant: two: hello', 'user: draw']
    assert len(list(tmp_path.iterdir())) == 2
    file = tmp_path / 'both.json'
    conversation.talk.save(file)
    assert [record['model'] for record in json.loads(file.read_text())] == ['one', 'two']


def test_ctrl_c_stops_the_answer_and_not_the_conversation(tmp_path: Path) -> None:
    echo, out = Echo(pause=0.02), io.StringIO()
    conversation = Chat([echo], Screen(out, tmp_path))
    lines = iter(['x' * 500, 'hi', KeyboardInterrupt(), '/quit'])

    def read(_: str) -> str:
        line = next(lines)
        if isinstance(line, KeyboardInterrupt):
            raise line
        if line == 'x' * 500:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        return line

    # Where a shell has started the tests in the background, it has them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    conversation.run(read)
    signal.signal(signal.SIGINT, before)
    assert '(stopped)' in out.getvalue() and '(/quit ends)' in out.getvalue()
    _, stopped, question, answer = conversation.talk.turns[0]
    assert 0 < len(stopped['content'][0]['text']) < 400, 'what was said so far stays in the conversation'
    assert texts([question, answer]) == ['user: hi', 'assistant: echo: hi']


def test_a_model_cannot_steer_the_terminal(tmp_path: Path) -> None:
    shown, _ = talk(['a\x1b[2Jb\x07'], [Echo()], tmp_path)
    assert '\x1b' not in shown and '\x07' not in shown and 'a\ufffd[2Jb\ufffd' in shown


def test_sixels_are_the_picture() -> None:
    picture = Image.new('RGB', (5, 8), 'black')
    picture.putpixel((1, 0), (255, 0, 0))
    picture.putpixel((4, 7), (0, 0, 255))
    code = graphics.sixels(picture.resize((400, 300), Image.Resampling.NEAREST))
    assert code.startswith('\x1bP0;1q"1;1;400;300') and code.endswith('\x1b\\')
    assert numpy.array_equal(read_sixels(code), numpy.asarray(picture.resize((400, 300), Image.Resampling.NEAREST)))


def read_sixels(code: str) -> numpy.ndarray:
    """What a terminal makes of it."""
    width, height = map(int, re.search(r'"1;1;(\d+);(\d+)', code).groups())
    pixels = numpy.zeros((height + 6, width, 3), numpy.uint8)
    palette, colour, column, top = {}, 0, 0, 0
    body = code[code.index('#') : -2]
    for token in re.finditer(r'#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)(.)|\$|-|[?-~]', body):
        if token[1]:
            palette[int(token[1])] = [round(int(share) * 255 / 100) for share in token.group(2, 3, 4)]
        elif token[5]:
            colour = int(token[5])
        elif token[0] in '$-':
            column, top = 0, top + 6 * (token[0] == '-')
        else:
            length, letter = (int(token[6]), token[7]) if token[6] else (1, token[0])
            for bit in range(6):
                if (ord(letter) - 63) >> bit & 1:
                    pixels[top + bit, column : column + length] = palette[colour]
            column += length
    return pixels[:height]


@pytest.mark.parametrize(
    ('reply', 'way'),
    [
        (b'\x1b_Gi=31;OK\x1b\\\x1b[?62;c', graphics.kitty),
        (b'\x1b[?62;4;22c', graphics.sixels),
        (b'\x1b[?62;22c', None),
        (b'\x1b[?64;14c', None),
        (b'', None),
    ],
)
def test_a_terminal_says_what_it_shows(reply: bytes, way: Any) -> None:
    assert graphics.named_in(reply) is way


def test_a_terminal_is_asked_and_left_as_it_was() -> None:
    import pty
    import termios

    terminal, program = pty.openpty()
    before = termios.tcgetattr(program)
    heard: list[bytes] = []

    def play() -> None:
        heard.append(os.read(terminal, 1000))
        os.write(terminal, b'\x1b[?62;4c')

    player = threading.Thread(target=play)
    player.start()
    assert graphics.graphics_of(program, program) is graphics.sixels
    player.join()
    assert heard[0].endswith(b'\x1b[c') and termios.tcgetattr(program) == before
    begun = time.monotonic()
    assert graphics.graphics_of(program, program) is None, 'one that says nothing'
    assert time.monotonic() - begun < 3
    os.close(terminal)
    os.close(program)


def run(lines: Sequence[str], *argv: str, small: Sequence[str] = SMALL, **environ: str) -> str:
    out = io.StringIO()
    chat([*small, *argv], environ, io.StringIO('\n'.join(lines) + '\n'), out)
    return out.getvalue()


def test_with_checkpoints(tiny: Callable[..., Path], emitting: Callable[..., Path], tmp_path: Path) -> None:
    RED.save(tmp_path / 'red.png')
    text, seeing = str(tiny('qwen3')), str(tiny('qwen2_vl'))
    argv = ('--max_new_tokens', '8', '--temperature', '0', '--media_folder', str(tmp_path / 'made'))
    lines = ['hello', 'again', '/retry', f'/image {tmp_path}/red.png']
    shown = run(lines, '--model_name_or_path', text, *argv)
    assert 'reads text, and no image' in shown and len(shown.splitlines()) >= 4
    both = run(['hello'], '--model_name_or_path', text, '--compare', seeing, *argv)
    assert 'qwen3' in both and 'qwen2_vl' in both
    looked = run([f'/image {tmp_path}/red.png', 'what?', 'and now?'], '--model_name_or_path', seeing, *argv)
    assert '! ' not in looked
    drawn = run(['draw', 'and again'], '--model_name_or_path', str(emitting('unified')), '--max_new_tokens', '150',
                '--media_folder', str(tmp_path / 'drawn'))  # fmt: skip
    assert '! ' not in drawn


@pytest.mark.extended
def test_with_a_pipeline(tiny: Callable[..., Path], tmp_path: Path) -> None:
    argv = ('--model_name_or_path', str(tiny('sd15')), '--rollout_steps', '2', '--media_folder', str(tmp_path))
    shown = run(['a red square', 'another'], *argv, small=SMALL[:2])
    assert '! ' not in shown and sorted(path.name for path in tmp_path.iterdir()) == [
        'image_0001.png',
        'image_0002.png',
    ]


def test_with_a_server(tmp_path: Path) -> None:
    parrot = Parrot()
    with listening(Server('parrot', parrot, keys=Keys([KEY]))) as url:
        argv = ('--url', f'{url}/v1', '--max_new_tokens', '50', '--temperature', '0.5')
        RED.save(tmp_path / 'red.png')
        lines = ['hello', f'/image {tmp_path}/red.png', 'look', 'bye']
        shown = _with_key(lines, argv)
        assert shown.startswith('hello\n') and 'bye\n' in shown
        assert '! messages.2 has image media, and this model reads text alone' in shown
        assert parrot.wishes[0].max_new_tokens == 50 and parrot.wishes[0].temperature == 0.5
        with pytest.raises(ModelError, match='no API key, or a wrong one'):
            run(['hello'], *argv, small=())
    with pytest.raises(ModelError, match='lists no models'):
        run(['hello'], '--url', url, small=())


def _with_key(lines: Sequence[str], argv: Sequence[str]) -> str:
    os.environ[KEY_VARIABLE] = KEY
    try:
        return run(lines, *argv, small=())
    finally:
        del os.environ[KEY_VARIABLE]


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ((), 'model_name_or_path is required: name a checkpoint, or a server with --url'),
        (('--url', 'http://x', '--model_name_or_path', 'y'), 'model_name_or_path .* url'),
        (('--served_model_name', 'x', '--model_name_or_path', 'y'), r'served_model_name .* without train_cfgs\.url'),
        (('--model_name_or_path', 'y', '--port', '3'), 'port'),
    ],
)
def test_what_is_wrong_is_said_before_it_talks(argv: Sequence[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run([], *argv, small=())


def test_what_is_done_is_shown_remembered_and_saved(tmp_path: Path) -> None:
    class Robot(Echo):
        def answer(self, turns: Sequence[Message], seed: int) -> Iterator[dict[str, Any]]:
            self.got.append(list(turns))
            moves = Actions(torch.tensor([[0.1, -2.0], [0.25, 3.0]], dtype=torch.float64))
            yield {'type': 'action', 'action': moves if self.name == 'arm' else Actions(names=('left',))}

    robot, arm = Robot('robot'), Robot('arm')
    shown, conversation = talk(['go', 'on', f'/save {tmp_path}/talk.json'], [robot], tmp_path)
    assert shown.startswith('left\nleft\n') and robot.got[1][1]['content'][0]['action'].names == ('left',)
    (record,) = json.loads((tmp_path / 'talk.json').read_text())
    assert record['messages'][1] == {'role': 'assistant', 'content': [{'type': 'action', 'action': ['left']}]}
    talk([f'/load {tmp_path}/talk.json', 'back'], [robot], tmp_path)
    assert robot.got[-1][1]['content'] == [{'type': 'action', 'action': ['left']}] and len(robot.got[-1]) == 5
    both, conversation = talk(['go', f'/save {tmp_path}/both.json'], [robot, arm], tmp_path)
    assert 'left' in both and '[0.1, -2], [0.25, 3]' in both
    assert json.loads((tmp_path / 'both.json').read_text())[1]['messages'][1]['content'][0]['action'][1] == [0.25, 3.0]
    assert sent(arm.got[0][0]) == {'role': 'user', 'content': 'go'}
    done = conversation.talk.turns[1][1]
    assert sent(done) == {'role': 'assistant', 'content': '', 'actions': [[[0.1, -2.0], [0.25, 3.0]]]}
    (tmp_path / 'bad.json').write_text('[{"messages": [{"role": "assistant", "content": [{"type": "action"}]}]}]')
    assert 'holds no saved conversation' in talk([f'/load {tmp_path}/bad.json'], [robot], tmp_path)[0]
