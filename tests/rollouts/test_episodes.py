"""Episodes of several turns: one response each, scored as they were sampled, with what fails in them bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import WorldError
from align_anything.core.types import Audio, Example, Response, Skipped, Video
from align_anything.environments import Environment, Observation, Said, Step
from align_anything.environments.base import Alone, BatchEnvironment
from align_anything.environments.hosts import Here
from align_anything.environments.pool import Pool
from align_anything.environments.workers import Workers
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import LAYOUTS
from align_anything.reporting.online_report import _of_episodes, means, sums_of
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.episodes import Episodes
from align_anything.rollouts.experience import complete
from align_anything.rollouts.hf import HFRollouts
from align_anything.trainers.loops.judging import completions_of
from tests.harness.pairwise import in_tiers
from tests.models.mixed import policy_of
from tests.models.samples import load, user

Tiny = Callable[..., Path]


def medium(kind: str, turn: int) -> Any:
    """A picture, a clip or a sound, of another size in each turn."""
    if kind == 'image':
        return Image.new('RGB', (40 + 28 * turn, 56), (40 * turn, 90, 20))
    if kind == 'audio':
        return Audio(np.sin(np.arange(4000 + 1600 * turn) * (0.1 + turn / 10)).astype(np.float32), 16_000)
    frames = np.full((2 + 2 * turn, 56, 56, 3), 40 + 40 * turn, np.uint8)
    frames[:, : 14 * (turn + 1)] = 200
    return Video(frames, np.arange(len(frames)) / 2, 2.0)


class Steps(Environment):
    """As many turns as the seed and the first token say, with a medium in each where it is to have one."""

    def __init__(self, shows: str = '', fails: str = '', succeeds: bool | None = None) -> None:
        self.shows, self.fails, self.succeeds = shows, fails, succeeds

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        if self.fails == 'reset':
            raise OSError('no world')
        self.turn, self.seed = 0, seed
        return self.shown(f'Begin {seed % 10}.')

    def shown(self, text: str) -> Observation:
        media = [{'type': self.shows, self.shows: medium(self.shows, self.turn)}] if self.shows else []
        return Observation([{'role': 'user', 'content': [*media, text]}])

    def step(self, said: Said) -> Step:
        self.turn += 1
        if self.fails == 'always':
            raise OSError('always')
        if self.fails == 'odd' and len(said.text) % 2:
            raise OSError('odd')
        if self.fails == 'second' and self.turn == 2:
            raise OSError('no second turn')
        done = len(said.text) % 3 == self.turn % 3
        reward = None if self.fails == 'silent' else 0.25
        info = {} if self.fails == 'silent' and not done else {'success': done}
        return Step(self.shown(f'Turn {self.turn}.'), reward=reward, costs={'heat': 1.0}, done=done, info=info)

    def score(self) -> float | None:
        return None if self.fails == 'silent' else 1.0


class Worlds(Here):
    """Makes them, without a file."""

    def capacity(self, name: str) -> int | None:
        return 1

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        return Alone(Steps(**kwargs))


def episodes(tiny: Tiny, family: str, batch_size: int = 4, **more: Any) -> tuple[Episodes, Any, FamilySpec]:
    spec = load(tiny(family))
    # Whatever is sampled ends the turn soon: a tiny model has not learned to.
    spec.stop_token_ids = (*spec.stop_token_ids, *range(40, 120))
    policy = policy_of(tiny(family), spec, 'shared_prefix').eval()
    engine = HFRollouts(policy.model, spec, dtype=torch.float32, batch_size=batch_size)
    kwargs = {name: more.pop(name) for name in ('shows', 'fails', 'succeeds') if name in more}
    settings = {'max_turns': 3, 'max_tokens': 2000, **more}
    made = Episodes(engine, spec, Pool('steps', kwargs, host=Worlds()), **settings)
    made.sync(7)
    return made, policy, spec


def prompts(spec: FamilySpec, number: int = 3) -> list[Example]:
    asked = [[user(f'Question {index}?')] for index in range(number)]
    return [
        Example(spec.encode_prompt(conversation), [], source=f'row {index}', conversation=conversation)
        for index, conversation in enumerate(asked)
    ]


SAMPLING = Sampling(responses=4, max_new_tokens=5, seed=1)


# Templates of janus and emu3 write no token that ends an answer, or not behind the last one.
READ = [
    ('qwen2', ''),
    ('qwen2_5_vl', 'image'),
    ('llava', 'image'),
    ('janus', 'image'),
    ('emu3', ''),
    ('qwen2_vl', 'video'),
    ('qwen3_vl', 'video'),
    ('qwen2_audio', 'audio'),
    *[('qwen2_5_omni_thinker', kind) for kind in ('image', 'video', 'audio')],
]


@pytest.mark.parametrize(('family', 'shows'), in_tiers(READ, READ[:3]))
def test_what_was_recorded_is_one_forward_pass_over_the_episode(family: str, shows: str, tiny: Tiny) -> None:
    made, policy, spec = episodes(tiny, family, shows=shows)
    examples = prompts(spec)
    done = complete(examples, made.generate(examples, SAMPLING))
    responses = [response for example in done for response in example.responses]
    turns = [len(response.episode.turns) for response in responses]
    assert {1, 2, 3} <= {*turns}, turns
    for example in done:
        assert len(example.prompt) > len(examples[0].prompt) and example.prompt.media_counts == (
            {shows: 1} if shows else {}
        )
        for response in example.responses:
            self_check(response, spec, shows)
    recorded = torch.cat([response.per_unit['rollout'] for response in responses])
    for layout in LAYOUTS:
        batch = TokenCollator(spec, layout)(done)
        with torch.no_grad():
            found = policy_of(tiny(family), spec, layout).eval()(batch).values if layout != 'shared_prefix' else None
            found = policy(batch).values if found is None else found
        assert len(found) == len(recorded) == sum(response.units for response in responses)
        assert float((found - recorded).abs().max()) < 1e-5, layout
        if layout == 'shared_prefix' and shows:
            # The first medium of a row is encoded once.
            assert batch.stats[f'{shows}s'] == len(done) + sum(turns) - len(turns)


def self_check(response: Response, spec: FamilySpec, shows: str) -> None:
    episode = response.episode
    stops = [turn.stop for turn in episode.turns]
    assert stops[-1] == len(response) and sum(turn.units for turn in episode.turns) == response.units
    assert response.weights.sum() == response.units and response.version == 7
    assert response.media_counts.get(shows, 0) == bool(shows) * (len(stops) - 1)
    start = 0
    for number, stop in enumerate(stops):
        own = response.weights[start:stop]
        units = episode.turns[number].units
        assert own[len(own) - units :].all() and not own[: len(own) - units].any(), 'observations weigh nothing'
        if number:
            told = spec.text_of(response.ids[start : stop - units].tolist())
            opened = '<|im_end|>\n<|im_start|>assistant\n' if spec.model_type.startswith('qwen2') else ''
            assert f'Turn {number}.{opened}' in told
        start = stop
    assert episode.ended in ('done', 'turns', 'tokens') and response.finished == (episode.ended == 'done')
    judged = [turn for turn in episode.turns if turn.reward is not None]
    assert episode.reward == 1 + 0.25 * len(judged) and episode.cost == len(judged)
    assert response.parts == episode.turns[-1].parts
    roles = [message['role'] for message in episode.messages]
    assert roles[::2] == ['assistant'] * len(stops)


def test_episodes_of_a_row_begin_alike_and_those_of_another_epoch_otherwise(tiny: Tiny) -> None:
    made, _, spec = episodes(tiny, 'qwen2')
    examples = prompts(spec, 1)

    def told(examples: list[Example], sampling: Sampling) -> tuple[str, list[list[int]]]:
        (done,) = complete(examples, made.generate(examples, sampling))
        return spec.text_of(done.prompt.ids.tolist()), [response.ids.tolist() for response in done.responses]

    first = told(examples, SAMPLING)
    assert told(examples, SAMPLING) == first
    later, _ = told([replace(examples[0], epoch=1)], SAMPLING)
    assert later != first[0] and 'Question 0?\n\nBegin' in later
    assert told(examples, replace(SAMPLING, seed=2))[0] == first[0]


def test_samples_with_seeds_of_their_own_do_not_hang_on_their_neighbours(tiny: Tiny) -> None:
    made, _, spec = episodes(tiny, 'qwen2')
    examples = prompts(spec, 2)
    both = made.generate(examples, replace(SAMPLING, seeds=(11, 12)))
    (alone,) = made.generate(examples[1:], replace(SAMPLING, seeds=(12,)))
    assert [one.ids.tolist() for one in both[1]] == [one.ids.tolist() for one in alone]


SLOWLY = """
import os
import pathlib

from align_anything.environments import Environment, Observation, Step


class Letters(Environment):
    def __init__(self, mark: str):
        self.mark = pathlib.Path(mark)

    def reset(self, row, seed):
        self.turn = 0
        return Observation(f'Begin {seed % 10}.')

    def step(self, said):
        self.turn += 1
        if self.turn == 2 and self.mark.exists():
            self.mark.unlink()
            os.kill(os.getpid(), 9)
        letters = len(said.text)
        return Step(Observation(f'{letters} in {self.turn}.'), reward=letters, done=letters % 3 == self.turn % 3)
"""


def test_in_other_processes_of_which_one_dies_episodes_are_the_same(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / 'own.py').write_text(SLOWLY)
    made, _, spec = episodes(tiny, 'qwen2')
    kwargs = {'mark': str(tmp_path / 'mark')}
    found = []
    workers = Workers(2)
    for host in (Here(), workers):
        one = replace(made, pool=Pool(f'{tmp_path}/own.py:Letters', kwargs, host=host))
        found.append([response for own in one.generate(prompts(spec), SAMPLING) for response in own])
        if host is not workers:
            (tmp_path / 'mark').touch()
    workers.close()
    here, there = found
    assert not (tmp_path / 'mark').exists(), 'none of them died'
    assert [one.ids.tolist() for one in here] == [one.ids.tolist() for one in there]
    assert [one.episode.reward for one in here] == [one.episode.reward for one in there]
    assert max(len(one.episode.turns) for one in here) > 1


def test_limits_of_turns_and_of_tokens_end_an_episode_unfinished(tiny: Tiny) -> None:
    made, _, spec = episodes(tiny, 'qwen2', max_turns=1)
    examples = prompts(spec)
    found = [response for own in made.generate(examples, SAMPLING) for response in own]
    assert {response.episode.ended for response in found} >= {'turns', 'done'}
    assert all(len(response.episode.turns) == 1 for response in found)
    longest = max(len(response.episode.prompt) for response in found)
    made = replace(made, max_turns=9, max_tokens=longest + 12)
    found = [response for own in made.generate(examples, SAMPLING) for response in own]
    assert 'tokens' in {response.episode.ended for response in found}
    assert all(len(response.episode.prompt) + len(response) <= longest + 12 for response in found)
    made = replace(made, max_tokens=longest, max_failures=1.0)
    assert made.generate(examples, SAMPLING) == [[], [], []]
    with pytest.raises(WorldError, match='longer than the'):
        made.failed()


@pytest.mark.parametrize(('succeeds', 'told'), [(None, set()), (True, {False}), (False, {None})])
def test_what_was_cut_before_it_was_judged_is_worth_nothing(
    succeeds: bool | None, told: set[Any], tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    made, _, spec = episodes(tiny, 'qwen2', fails='silent', succeeds=succeeds, max_turns=1)
    found = [response.episode for own in made.generate(prompts(spec), SAMPLING) for response in own]
    assert {(episode.ended == 'done', episode.reward) for episode in found} == {(True, None), (False, 0.0)}
    assert all(episode.info['success'] is True for episode in found if episode.ended == 'done')
    cut = [episode for episode in found if episode.ended != 'done']
    assert {episode.info['success'] for episode in cut if 'success' in episode.info} == told
    # One that ended without a reward is told of once.
    assert caplog.text.count('ended an episode (done) without a reward') == 1
    done = sum(episode.ended == 'done' for episode in found)
    numbers = {**_of_episodes([Response(torch.zeros(0), torch.zeros(0), episode=own) for own in found])}
    wanted = 1.0 if succeeds is False else done / len(found)
    assert means(numbers, sums_of(numbers))['success'] == pytest.approx(wanted)
    assert (done < len(found)) and 'success/unsaid' not in means(numbers, sums_of(numbers))


@pytest.mark.parametrize('on_failure', ['drop', 'zero'])
def test_what_fails_is_left_out_or_worth_nothing(on_failure: str, tiny: Tiny) -> None:
    made, _, spec = episodes(tiny, 'qwen2', fails='odd', on_failure=on_failure, max_failures=1.0)
    found = made.generate(prompts(spec), SAMPLING)
    failed = [response for own in found for response in own if response.episode.ended == 'failed']
    lost = made.failed()
    assert 0 < len(lost) < 12 and {item.reason for item in lost} == {'OSError: odd'}
    if on_failure == 'zero':
        assert len(failed) == len(lost) and [len(own) for own in found] == [4, 4, 4]
        assert all(response.episode.reward == 0 and response.episode.cost == 0 for response in failed)
        assert all('success' not in response.episode.info for response in failed), 'what failed did not succeed'
    else:
        assert not failed and sum(map(len, found)) <= 12 - len(lost) and 1 not in map(len, found)


def test_too_many_failures_end_the_run_with_the_first_of_them(tiny: Tiny) -> None:
    made, _, spec = episodes(tiny, 'qwen2', fails='reset')
    made.generate(prompts(spec), SAMPLING)
    listed: list[Skipped] = []
    with pytest.raises(WorldError, match='12 of the last 12 episodes failed.*row 0: OSError: no world') as ended:
        made.failed(listed.extend)
    assert [item.source for item in listed] == [f'row {number}' for number in range(3) for _ in range(4)]
    assert "raise OSError('no world')" in str(ended.value)


@pytest.mark.parametrize('on_failure', ['drop', 'zero'])
def test_where_all_fail_the_run_ends_whatever_may(on_failure: str, tiny: Tiny) -> None:
    made, _, spec = episodes(tiny, 'qwen2', fails='always', max_failures=1.0, on_failure=on_failure)
    # Nobody is cut before the environment is asked.
    sampling = replace(SAMPLING, max_new_tokens=40)
    found = made.generate(prompts(spec), sampling)
    assert [len(own) for own in found] == [4 * (on_failure == 'zero')] * 3
    with pytest.raises(WorldError, match=r'all of the last 12 episodes failed.*row 0: OSError: always \(12 of them\)'):
        made.failed()
    # One row may be broken; two of them are not.
    made = replace(made, counts=[])
    made.generate(prompts(spec, 1), sampling)
    assert len(made.failed()) == 4 and made.counts == [[4, 4, 1]]
    made.generate(prompts(spec, 1), sampling)
    with pytest.raises(WorldError, match='all of the last 8 episodes failed'):
        made.failed()


def test_an_environment_of_a_row_is_one_that_the_policy_can_act_in(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    made, _, spec = episodes(tiny, 'qwen2')
    actions = {name: ActionSpace(names=names) for name, names in (('own', ('up', 'down')), ('other', ('Up', 'sit')))}
    spec.space = actions['own']
    pool = Pool('steps', {}, host=Worlds())
    for space in (None, actions['other']):
        Steps.actions = space
        replace(made, pool=pool).generate(prompts(spec), SAMPLING)
    assert caplog.text.count('steps knows no down, which the policy may do') == 1
    Steps.actions = ActionSpace(names=('left', 'right'))
    try:
        with pytest.raises(WorldError, match=r'row 0: the policy cannot act in steps: it knows none.*\(up, down\)'):
            replace(made, pool=pool).generate(prompts(spec), SAMPLING)
    finally:
        Steps.actions = spec.space = None


def test_an_environment_that_does_not_heed_its_seed_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, spec = episodes(tiny, 'qwen2')
    begun = iter(range(100))
    monkeypatch.setattr(Steps, 'reset', lambda self, row, seed: Observation(f'Begin {next(begun)}.'))
    with pytest.raises(WorldError, match='row 0: the environment begins otherwise with the same seed'):
        made.generate(prompts(spec), SAMPLING)


class Scripted:
    """An engine that says these texts, one in each turn."""

    model = None

    def __init__(self, spec: FamilySpec, *texts: str) -> None:
        self.spec, self.texts = spec, [*texts]

    def sync(self, version: int) -> None: ...

    def sleep(self) -> None: ...

    def generate(self, examples: Sequence[Example], sampling: Sampling, tell: object = None) -> list[list[Response]]:
        text = self.texts.pop(0)
        ids = torch.tensor([*self.spec.tokenizer(text)['input_ids'], self.spec.renderer.end_of_turn_id])
        parts = [{'type': 'text', 'text': text}]
        one = Response(ids, torch.ones(len(ids)), per_unit={'rollout': torch.zeros(len(ids))}, parts=parts)
        return [[replace(one) for _ in range(sampling.responses)] for _ in examples]


def test_calls_are_answered_by_tools_in_the_form_of_the_template(tiny: Tiny) -> None:
    spec = load_spec(str(tiny('qwen3', template='qwen3')), model_max_length=None)
    call = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "6 * 4"}}\n</tool_call>'
    engine = Scripted(spec, call, f'Sure?\n{call}\n{call}', 'It is 24.')
    made = Episodes(engine, spec, Pool('calculator'), max_turns=4, max_tokens=2000)
    (example,) = prompts(spec, 1)
    example.meta['ground_truth'] = '24'
    done = complete([example], made.generate([example], replace(SAMPLING, responses=2)))
    told, again = done[0].responses
    assert told.ids.tolist() == again.ids.tolist() and 'calculate' in spec.text_of(done[0].prompt.ids.tolist())
    shown = '<tool_response>\n24\n</tool_response>'
    opened = '<|im_end|>\n<|im_start|>assistant\n'
    between = f'<|im_end|>\n<|im_start|>user\n{shown}{opened}'
    twice = f'<|im_end|>\n<|im_start|>user\n{shown}\n{shown}{opened}'
    assert spec.text_of(told.ids.tolist()) == f'{call}{between}Sure?\n{call}\n{call}{twice}It is 24.<|im_end|>'
    chosen = spec.text_of(told.ids[told.weights > 0].tolist())
    assert chosen == f'{call}<|im_end|>Sure?\n{call}\n{call}<|im_end|>It is 24.<|im_end|>'
    episode = told.episode
    assert [turn.calls for turn in episode.turns] == [1, 2, 0] and episode.ended == 'done'
    assert episode.reward == 1 and episode.info == {'tool_errors': 0, 'success': True}
    completion, _ = completions_of(done, spec)
    roles = [message['role'] for message in completion.conversation]
    assert roles == ['user', 'assistant', 'tool', 'assistant', 'tool', 'tool'] and completion.response == 'It is 24.'
    assert completion.conversation[1]['tool_calls'][0]['function']['arguments'] == {'expression': '6 * 4'}


def test_a_call_that_cannot_be_read_is_told_and_ends_nothing(tiny: Tiny) -> None:
    spec = load_spec(str(tiny('qwen3', template='qwen3')), model_max_length=None)
    engine = Scripted(spec, 'So:\n<tool_call>\n{"name": "calculate"', 'It is 24.')
    made = Episodes(engine, spec, Pool('calculator'), max_turns=4, max_tokens=2000)
    (example,) = prompts(spec, 1)
    example.meta['ground_truth'] = '24'
    ((response,),) = made.generate([example], replace(SAMPLING, responses=1))
    episode = response.episode
    assert [(turn.calls, dict(turn.info)) for turn in episode.turns] == [
        (0, {'tool_errors': 1}),
        (0, {'success': True}),
    ]
    assert 'the call cannot be read' in episode.messages[1]['content'][0]['text'] and episode.ended == 'done'
