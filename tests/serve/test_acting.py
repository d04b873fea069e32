"""Models that act, of every kind, over HTTP: what is asked with a picture is answered with what is to be done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from align_anything.models.action_space import write_action_space
from align_anything.serve.errors import RequestError
from align_anything.serve.messages import MediaLimits, rows_of
from align_anything.serve.requests import ChatBody, read_body
from align_anything.testing.tiny import build
from tests.models.stand_ins.openvla import build_openvla
from tests.policies.acting.worlds import NAMED, NAMES, NUMBERS, small
from tests.serve.common import asked, client, image_uri, serving

RED = Image.new('RGB', (40, 30), 'red')


@dataclass(frozen=True)
class Kind:
    """How a kind is made, asked, and what it answers: a name, or so many steps of so many numbers."""

    make: Callable[[Path, Path], Any]
    argv: Sequence[str] = ()
    answer: tuple[int, int] | None = None
    beside: Mapping[str, Any] = field(default_factory=dict)
    heeds: frozenset[str] = frozenset({'temperature'})


def tokens(folder: Path, tiny: Path) -> None:
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).symlink_to(file)
    space = {**NAMED.to_json(), 'tokens': 'tail', 'first_ids': (300,)}
    write_action_space(folder, type(NAMED).from_json(space))


OPENVLA = ('--trust_remote_code', 'True', '--action_dataset', 'bridge_orig', '--max_new_tokens', '8')
KINDS: dict[str, Kind] = {
    'tokens': Kind(tokens, ('--max_new_tokens', '4'), heeds=frozenset({'temperature', 'max_tokens'})),
    'spoc': Kind(lambda folder, _: small(folder)),
    'gaussian': Kind(lambda folder, _: small(folder, NUMBERS, head='gaussian'), answer=(3, 2)),
    'pi0': Kind(
        lambda folder, _: build('pi0', folder),
        answer=(4, 2),
        beside={'state': {'position': [0.5, 0.4]}},
        heeds=frozenset({'steps'}),
    ),
    'openvla': Kind(lambda folder, _: build_openvla(folder), OPENVLA, (1, 7), heeds=frozenset({'temperature'})),
}


def test_what_was_done_is_read_as_it_was_told() -> None:
    def rows(*turns: dict[str, Any]) -> list[dict[str, Any]]:
        body = read_body(ChatBody, json.dumps({'model': 'robot', 'messages': turns}).encode())
        return rows_of(body.messages, MediaLimits(), frozenset())

    seen = {'role': 'user', 'content': 'go', 'state': {'arm': [0.5]}}
    done = {'role': 'assistant', 'content': 'left', 'actions': [['left']]}
    assert rows(seen, done) == [
        seen,
        {'role': 'assistant', 'content': [{'type': 'action', 'action': ['left']}]},
    ]
    for wrong in ({**seen, 'actions': [['left']]}, {**done, 'actions': []}):
        with pytest.raises(RequestError, match='actions'):
            rows(wrong)


@pytest.mark.extended
@pytest.mark.parametrize('kind', KINDS)
def test_a_model_that_acts_answers_with_what_is_to_be_done(
    kind: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    own, folder = KINDS[kind], tmp_path / 'robot'
    own.make(folder, tiny('qwen2_5_vl'))
    picture = {'type': 'image_url', 'image_url': {'url': image_uri(RED)}}
    first = {'role': 'user', 'content': [{'type': 'text', 'text': 'go to the left'}, picture], **own.beside}
    later = {'role': 'user', 'content': [picture], **own.beside}

    def asked_of(url: str, *turns: Any, **more: Any) -> Any:
        body = {'model': 'robot', 'messages': [*turns], 'seed': 1, **more}
        return httpx2.post(f'{url}/v1/chat/completions', json=body, timeout=60).json()

    def done_in(answer: Any) -> Any:
        message = answer['choices'][0]['message']
        (done,) = message['actions']
        if own.answer is None:
            assert done == [message['content']] and done[0] in NAMES
        else:
            assert (len(done), *{len(step) for step in done}) == own.answer
        return done

    with serving('--model_name_or_path', str(folder), *own.argv) as url:
        answer = asked_of(url, first)
        done = done_in(answer)
        assert done_in(asked_of(url, first)) == done, 'a seed decides'
        # What was answered is taken back as it is, as a turn of the episode.
        done_in(asked_of(url, first, answer['choices'][0]['message'], later))
        with httpx2.stream('POST', f'{url}/v1/chat/completions', timeout=60, json={
            'model': 'robot', 'messages': [first], 'seed': 1, 'stream': True,
        }) as stream:  # fmt: skip
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith('data: {')]
        assert [delta['actions'] for event in events if 'actions' in (delta := event['choices'][0]['delta'])] == [
            [done]
        ]
        assert len(asked_of(url, first, n=3)['choices']) == 3
        for name, value in {'temperature': 0.5, 'steps': 3, 'max_tokens': 8, 'top_k': 2}.items():
            told = asked_of(url, first, **{name: value})
            assert ('error' not in told) == (name in own.heeds | ({'max_tokens'} if kind == 'openvla' else set())), told
        assert 'only assistant turns act' in asked_of(url, {**first, 'actions': [['left']]})['error']['message']


@pytest.mark.extended
def test_a_model_that_does_not_act_is_told_of_no_actions(tiny: Callable[..., Path]) -> None:
    turns = [*asked('go'), {'role': 'assistant', 'content': 'left', 'actions': [['left']]}, *asked('on')]
    with serving('--model_name_or_path', str(tiny('qwen3'))) as url:
        body = {'model': client(url).models.list().data[0].id, 'messages': turns}
        told = httpx2.post(f'{url}/v1/chat/completions', json=body, timeout=60).json()
    assert 'holds actions, but the model does not act' in told['error']['message']


@pytest.mark.extended
def test_pictures_of_a_request_are_turned_as_those_that_were_learned_from(tmp_path: Path) -> None:
    small(tmp_path / 'up', NUMBERS, head='gaussian')
    small(tmp_path / 'down', replace(NUMBERS, pictures={'rotate': 180}), head='gaussian')
    half = Image.new('RGB', (16, 16), 'red')
    half.paste('blue', (0, 0, 16, 8))
    found = {}
    for name in ('up', 'down'):
        with serving('--model_name_or_path', str(tmp_path / name)) as url:
            for turn in (0, 180):
                shown = {'type': 'image_url', 'image_url': {'url': image_uri(half.rotate(turn))}}
                turns = [{'role': 'user', 'content': [{'type': 'text', 'text': 'go to the left'}, shown]}]
                body = {'model': name, 'messages': turns, 'seed': 1, 'temperature': 0}
                told = httpx2.post(f'{url}/v1/chat/completions', json=body, timeout=60).json()['choices']
                found[name, turn] = told[0]['message']['actions']
    assert found['up', 0] == found['down', 180] and found['up', 180] == found['down', 0]
    assert found['up', 0] != found['up', 180]
