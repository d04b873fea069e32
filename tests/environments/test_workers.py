"""Environments in processes of their own: those that hang, die, lie, return too much, or leave something behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from align_anything.core.types import Audio, Video
from align_anything.environments import Call, Said
from align_anything.environments.observing import Limits
from align_anything.environments.pool import EpisodeFailed, Pool
from align_anything.environments.workers import Workers
from tests.environments.one import One
from tests.harness.pairwise import first_of

AWKWARD = """
import os
import pathlib
import subprocess
import time

import numpy as np
from PIL import Image

from align_anything.environments import BatchEnvironment, Environment, Observation, Step


class Awkward(Environment):
    def __init__(self, folder: str, how: str = '', once: bool = False, seconds: float = 600):
        self.folder, self.how, self.once, self.seconds = pathlib.Path(folder), how, once, seconds

    def is_due(self, how):
        mark = self.folder / how
        if self.how != how or (self.once and mark.exists()):
            return False
        mark.touch()
        return True

    def reset(self, row, seed):
        if self.is_due('hangs in reset'):
            time.sleep(self.seconds)
        self.said = []
        return Observation(f'Begin {seed}, {os.environ.get("CUDA_VISIBLE_DEVICES")!r}.')

    def step(self, said):
        self.said.append(said.text)
        if len(self.said) < 2:
            return Step(Observation('Go on.'))
        if self.is_due('hangs in step'):
            time.sleep(self.seconds)
        if self.is_due('raises'):
            raise OSError('it broke')
        if self.is_due('dies'):
            os.kill(os.getpid(), 9)
        if self.is_due('exits'):
            os._exit(3)
        if self.is_due('interrupts'):
            raise KeyboardInterrupt
        if self.is_due('is nonsense'):
            return Step(Observation('x'), info={'what': object()})
        if self.is_due('is silent'):
            return Step()
        if self.is_due('is huge'):
            return Step(Observation([{'role': 'user', 'content': [
                {'type': 'image', 'image': np.zeros((9000, 9000), np.uint8)}]}]))
        if self.is_due('is endless'):
            return Step(Observation('x' * 2**26))
        if self.how == 'is long':
            return Step(Observation('a' * 600 + 'z' * 10 * 2**20))
        if self.how == 'sleeps':
            time.sleep(self.seconds)
        if self.how == 'leaves':
            subprocess.Popen(['sleep', '600'])
            subprocess.Popen(['setsid', '-f', 'sleep', '601'])
            (self.folder / 'worker').write_text(str(os.getpid()))
        return Step(Observation(' '.join(self.said)), reward=1, costs={'heat': np.float32(0.5)}, done=True,
                    info={'success': np.True_})

    def score(self):
        if self.is_due('hangs in score'):
            time.sleep(self.seconds)
        return 0.5


class Mirror(Environment):
    \"\"\"Shows what it is given.\"\"\"

    def reset(self, row, seed):
        self.row = row
        return Observation([{**message, 'role': 'user'} for message in row['messages']])

    def step(self, said):
        told = f'{said.text} {[(call.name, call.arguments) for call in said.calls]} {self.row["meta"]}'
        return Step(Observation([{'role': 'user', 'content': [*said.parts, {'type': 'text', 'text': told}]}]))


class Several(BatchEnvironment):
    capacity = 3

    def __init__(self, folder: str):
        self.mark = pathlib.Path(folder) / 'several'

    def reset(self, rows, seeds):
        self.sums = [0 for _ in rows]
        return [Observation(f'{len(rows)} {seed}') for seed in seeds]

    def step(self, said):
        if len(said) == 3 and said[0] is None and not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        steps = []
        for number, own in enumerate(said):
            if own is not None:
                self.sums[number] += int(own.text)
            steps.append(None if own is None else Step(Observation(str(self.sums[number]))))
        return steps
"""
SECONDS = 1.5


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('worlds')
    (folder / 'own.py').write_text(AWKWARD)
    return folder


@pytest.fixture(scope='module')
def workers() -> Iterator[Workers]:
    made = Workers(2, SECONDS)
    # What a first worker waits for, imports, is not what is timed here.
    first = One(Pool('number_game', host=made), {}, 0)
    first.begin()
    first.close()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def fresh(workers: Workers) -> Iterator[None]:
    yield
    for worker in workers.workers:
        worker.close()


def pool(folder: Path, workers: Workers, how: str = '', *, retries: int = 1, **more: Any) -> Pool:
    limits = more.pop('limits', Limits())
    return Pool(f'{folder}/own.py:Awkward', {'folder': str(folder), 'how': how, **more}, limits, retries, workers)


def text(messages: list[dict[str, Any]]) -> str:
    return ' '.join(part['text'] for message in messages for part in message['content'])


def test_an_episode_in_another_process_without_its_devices(folder: Path, workers: Workers) -> None:
    one = One(pool(folder, workers), {}, 7)
    begun = one.begin()
    assert text(begun.messages) == "Begin 7, ''." and begun.tools == [] and begun.rewards
    assert text(one.step(Said('a')).messages) == 'Go on.'
    answered = one.step(Said('b'))
    assert text(answered.messages) == 'a b' and answered.step.done and one.score() == 0.5
    assert answered.step.costs == {'heat': 0.5} and answered.step.info == {'success': True}
    one.close()


FAULTS = {
    'hangs in reset': r'reset took longer than 1\.5 s',
    'hangs in step': r'step took longer than 1\.5 s',
    'hangs in score': r'score took longer than 1\.5 s',
    'raises': 'OSError: it broke',
    'dies': 'its process ended in step, by signal SIGKILL',
    'exits': 'its process ended in step, with exit code 3',
    'interrupts': 'its process ended in step, with exit code 1',
    'is nonsense': 'cannot be written as JSON: it holds a object',
    'is silent': 'neither ends the episode',
    'is huge': '9000 x 9000 is over 67108864 pixels',
    'is endless': 'has 671[0-9]{5} bytes; it may have 67108864',
}


FIRST = ('hangs in reset', 'hangs in step', 'raises', 'dies', 'is nonsense', 'is endless')


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def played(one: One) -> float | None:
    one.begin()
    one.step(Said('a'))
    assert text(one.step(Said('b')).messages) == 'a b'
    return one.score()


@pytest.mark.parametrize('how', first_of(FAULTS, *FIRST))
def test_what_fails_is_named_and_tried_again(folder: Path, workers: Workers, how: str) -> None:
    neighbours = [One(pool(folder, workers), {}, seed) for seed in (1, 2)]
    for neighbour in neighbours:
        neighbour.begin()
        neighbour.step(Said('n'))
    if how not in ('hangs in reset', 'hangs in score'):
        assert played(One(pool(folder, workers, how, once=True), {}, 7)) == 0.5
    with pytest.raises(EpisodeFailed, match=FAULTS[how]) as failed:
        played(One(pool(folder, workers, how, retries=0), {}, 7))
    if how == 'raises':
        assert "raise OSError('it broke')" in failed.value.trace
    # Those who shared its process have lost nothing, and have not failed.
    for neighbour in neighbours:
        assert text(neighbour.step(Said('m')).messages) == 'n m'
        neighbour.close()


def test_a_long_text_is_cut_where_it_is_read(folder: Path, workers: Workers) -> None:
    one = One(pool(folder, workers, 'is long', limits=Limits(characters=100)), {}, 7)
    one.begin()
    one.step(Said('a'))
    shown = text(one.step(Said('b')).messages)
    assert shown.startswith('a' * 50 + ' … [') and shown.endswith('z' * 50) and len(shown) < 150


def test_a_worker_that_is_killed_is_replaced_without_a_failure(folder: Path, workers: Workers) -> None:
    own = pool(folder, workers, retries=0)
    ones = [One(own, {}, 7) for _ in range(4)]
    for one in ones:
        one.begin()
        one.step(Said('a'))
    pids = [worker.pid for worker in workers.workers]
    assert all(pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids))
    assert [text(one.step(Said('b')).messages) for one in ones] == ['a b'] * 4


def test_and_one_that_is_killed_while_it_works(folder: Path, workers: Workers) -> None:
    one = One(pool(folder, workers, 'sleeps', seconds=0.5), {}, 7)
    one.begin()
    one.step(Said('a'))
    victim = workers.workers[one.seats[0].session.lane].pid
    assert victim
    killer = threading.Timer(0.2, os.kill, (victim, signal.SIGKILL))
    killer.start()
    assert text(one.step(Said('b')).messages) == 'a b' and not psutil.pid_exists(victim)


def test_environments_of_a_turn_are_waited_for_together(folder: Path, workers: Workers) -> None:
    own = pool(folder, workers, 'sleeps', seconds=0.4)
    seats = own.open([{}] * 2, [0, 1])
    own.begin(seats)
    own.step(seats, [Said('a')] * 2)
    begun = time.monotonic()
    answers = own.step(seats, [Said('b'), Said('c')])
    assert [text(answer.messages) for answer in answers] == ['a b', 'a c'] and time.monotonic() - begun < 0.75


def test_nothing_that_an_environment_started_is_left(folder: Path, workers: Workers) -> None:
    one = One(pool(folder, workers, 'leaves'), {}, 7)
    played(one)
    worker = psutil.Process(int((folder / 'worker').read_text()))

    def left() -> dict[str, psutil.Process]:
        sleeping = [child for child in worker.children(recursive=True) if child.name() == 'sleep']
        return {child.cmdline()[1]: child for child in sleeping}

    until(lambda: left().keys() == {'600', '601'})
    ended = [*left().values(), worker]
    one.close()
    _, alive = psutil.wait_procs(ended, timeout=5)
    assert not alive


def test_media_and_rows_come_through_as_they_are(folder: Path, workers: Workers) -> None:
    picture = Image.effect_noise((31, 17), 90).convert('RGB')
    sound = Audio(np.linspace(-1, 1, 3200, dtype=np.float32), 16_000)
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)
    clip = Video(frames, np.array([0.0, 0.5, 2.0]), 24.0, sound)
    content = [
        {'type': 'image', 'image': picture},
        {'type': 'audio', 'audio': sound},
        {'type': 'video', 'video': clip},
        {'type': 'text', 'text': 'half \ud83d of a pair'.encode('utf-8', 'ignore').decode()},
    ]
    row = {'messages': [{'role': 'user', 'content': content}], 'meta': {'number': np.int64(3), 'none': None}}
    one = One(Pool(f'{folder}/own.py:Mirror', host=workers), row, 0)
    (message,) = one.begin().messages
    image, audio, video, _ = (part[part['type']] for part in message['content'])
    assert image.tobytes() == picture.tobytes() and image.size == picture.size
    assert (audio.samples == sound.samples).all() and audio.rate == sound.rate
    assert (video.frames == frames).all() and video.timestamps.tolist() == [0, 0.5, 2] and video.fps == 24
    assert (video.audio.samples == sound.samples).all()
    said = Said('Look.', (Call('zoom', {'x': 1}),), [content[0]])
    (message,) = one.step(said).messages
    assert message['content'][0]['image'].tobytes() == picture.tobytes()
    assert message['content'][1]['text'] == "Look. [('zoom', {'x': 1})] {'number': 3, 'none': None}"


def test_episodes_of_a_batch_go_on_together_and_again(folder: Path, workers: Workers) -> None:
    for mark in folder.glob('several'):
        mark.unlink()
    own = Pool(f'{folder}/own.py:Several', {'folder': str(folder)}, host=workers)
    seats = own.open([{}] * 4, [5, 6, 7, 8])
    assert [text(begun.messages) for begun in own.begin(seats)] == ['3 5', '3 6', '3 7', '1 8']
    assert [text(answer.messages) for answer in own.step(seats, [Said(str(n)) for n in range(4)])] == list('0123')
    # The first is over, and the process dies of it, once.
    answers = own.step(seats[1:], [Said('10')] * 3)
    assert [text(answer.messages) for answer in answers] == ['11', '12', '13'] and (folder / 'several').exists()
