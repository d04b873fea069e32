"""Prompts that come at once are answered together, and none is lost for another."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from align_anything.serve.answering import Prompt, Wish
from align_anything.serve.scheduler import Full, Job, Late, Scheduler
from tests.serve.common import Parrot

PATIENCE = 20.0


def job(text: str, wish: Wish | None = None, seconds: float = PATIENCE, hear: Any = None) -> Job:
    return Job(Prompt(text, len(text), wish or Wish()), 0, time.monotonic() + seconds, hear)


def said(one: Job) -> str:
    return one.answer.result(PATIENCE)[0].parts[0]['text']


def test_equal_wishes_that_wait_together_are_answered_together() -> None:
    parrot = Parrot(pause=0.02)
    scheduler = Scheduler(parrot, batch_size=4, queue_size=100)
    first = job('first')
    scheduler.submit([first])
    time.sleep(0.05)
    warm = [job(f'warm {number}', Wish(temperature=1.0)) for number in range(3)]
    cold = [job(f'cold {number}', Wish(temperature=0.0)) for number in range(6)]
    mixed = [warm[0], *cold[:3], warm[1], *cold[3:], warm[2]]
    scheduler.submit(mixed)
    assert [said(one) for one in [first, *mixed]] == [one.prompt.content for one in [first, *mixed]]
    assert parrot.batches == [1, 3, 4, 2], 'the oldest first, and at most so many responses at once'
    assert [wish.temperature for wish in parrot.wishes] == [None, 1.0, 0.0, 0.0]
    scheduler.close()
    assert not scheduler.works


def test_a_job_of_several_responses_counts_for_all_of_them() -> None:
    parrot = Parrot(pause=0.01)
    scheduler = Scheduler(parrot, batch_size=4, queue_size=100)
    jobs = [job('x', Wish(responses=2)) for _ in range(3)] + [job('x', Wish(responses=9))]
    scheduler.submit(jobs)
    assert [len(one.answer.result(PATIENCE)) for one in jobs] == [2, 2, 2, 9]
    assert parrot.batches == [2, 1, 1]
    scheduler.close()


def test_the_queue_is_bounded_and_takes_all_or_none() -> None:
    parrot = Parrot(pause=0.05)
    scheduler = Scheduler(parrot, batch_size=1, queue_size=2)
    running = job('running')
    scheduler.submit([running])
    while scheduler.waiting:
        time.sleep(0.005)
    with pytest.raises(Full):
        scheduler.submit([job('a'), job('b'), job('c')])
    assert scheduler.waiting == 0 and scheduler.running == 1
    waiting = [job('a'), job('b')]
    scheduler.submit(waiting)
    with pytest.raises(Full):
        scheduler.submit([job('c')])
    assert said(waiting[1]) == 'b'
    scheduler.close()
    with pytest.raises(Full):
        scheduler.submit([job('after the end')])


def test_what_nobody_waits_for_is_dropped_or_ended() -> None:
    parrot = Parrot(pause=0.02)
    scheduler = Scheduler(parrot, batch_size=1, queue_size=10)
    running, late, left = job('a long answer that is given up'), job('late', seconds=0.05), job('left')
    scheduler.submit([running, late, left])
    time.sleep(0.1)
    left.give_up()
    running.give_up()
    for one in (running, late, left):
        with pytest.raises(Late):
            one.answer.result(PATIENCE)
    assert parrot.batches == [1] and parrot.letters < len('a long answer that is given up')
    scheduler.close()


def test_one_prompt_costs_only_itself() -> None:
    def broken(text: str) -> str:
        if text == 'bad':
            raise ValueError('my secret')
        return text

    parrot = Parrot(say=broken)
    scheduler = Scheduler(parrot, batch_size=8, queue_size=10)
    jobs = [job('one'), job('bad'), job('two')]
    scheduler.submit(jobs)
    assert said(jobs[0]) == 'one' and said(jobs[2]) == 'two'
    assert isinstance(jobs[1].answer.exception(PATIENCE), ValueError)
    again = job('again')
    scheduler.submit([again])
    assert said(again) == 'again' and scheduler.works
    scheduler.close()


def test_parts_are_heard_as_they_come_and_only_by_those_who_listen() -> None:
    scheduler = Scheduler(Parrot(), batch_size=8, queue_size=10)
    heard: list[str] = []
    jobs = [job('loud', hear=lambda which, part: heard.append(part['text'])), job('quiet')]
    scheduler.submit(jobs)
    assert said(jobs[1]) == 'quiet' and said(jobs[0]) == 'loud' and heard == list('loud')
    scheduler.close()


def test_closing_answers_what_waits() -> None:
    scheduler = Scheduler(Parrot(pause=0.01), batch_size=1, queue_size=10)
    jobs = [job(text) for text in ('one', 'two', 'three')]
    scheduler.submit(jobs)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    assert [said(one) for one in jobs] == ['one', 'two', 'three']
    closing.join(PATIENCE)
    assert not closing.is_alive()
