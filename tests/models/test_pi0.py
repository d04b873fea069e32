"""The rules of pi0: steps are encoded as its processor does, and its action space decides what numbers stand for."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.files import atomic_write_json, read_json
from align_anything.models.acting.pi0 import OF_CHECKPOINT, Pi0Spec, load_pi0_spec
from align_anything.models.acting.pieces import SAID, STATE, VALUES
from align_anything.policies.acting.flow.collator import FlowCollator
from tests.policies.chunks import episode, seen

Tiny = Callable[..., Path]


@pytest.fixture(scope='module')
def spec(tiny: Tiny) -> Pi0Spec:
    return load_pi0_spec(tiny('pi0'))


@pytest.fixture
def copied(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny('pi0'), tmp_path / 'pi0'))


def change(folder: Path, file: str, **values: Any) -> Path:
    written = {**read_json(folder / file), **values}
    atomic_write_json(folder / file, {name: value for name, value in written.items() if value is not None})
    return folder


def test_steps_are_encoded_as_the_processor_does(tiny: Tiny, spec: Pi0Spec) -> None:
    processor = copy.copy(spec.processor)
    # Numbers that transformers has built in, and reads from no file.
    written = read_json(tiny('pi0') / 'processor_config.json')
    for name in ('state_mean', 'state_std', 'actions_mean', 'actions_std'):
        setattr(processor, name, torch.tensor(written[name]))
    processor.max_state_dim, processor.chunk_size = 8, 4
    turns = [episode(4, text='go to the red square'), episode(4, seed=1, text='stop')]
    theirs = processor(
        images=[[turn['content'][1]['image']] for turn, _ in turns],
        text=[turn['content'][0]['text'] for turn, _ in turns],
        state=[turn['state']['position'] for turn, _ in turns],
        actions=[acted['content'][0]['action'].values.tolist() for _, acted in turns],
    )
    examples = [spec.encode(conversation) for conversation in turns]
    for number, example in enumerate(examples):
        example.source = str(number)
    ours = FlowCollator(spec)(examples).inputs.seen
    length = ours.ids.shape[1]
    assert theirs['attention_mask'][:, length:].sum() == 0
    assert torch.equal(ours.ids, theirs['input_ids'][:, :length])
    assert torch.equal(ours.mask, theirs['attention_mask'][:, :length])
    assert torch.equal(ours.frames, theirs['pixel_values'])
    assert torch.equal(ours.cameras, theirs['pixel_attention_mask'])
    assert torch.allclose(ours.state, theirs['state'], atol=1e-6)
    chunks = torch.cat([example.responses[0].media[VALUES] for example in examples])
    assert torch.allclose(chunks, theirs['actions'], atol=1e-6)


def test_what_is_said_is_told_in_the_numbers_of_the_environment(spec: Pi0Spec) -> None:
    turns = episode(4, 2)
    example = spec.encode(turns)
    (response,) = example.responses
    parts = spec.decode(response)
    for part, acted in zip(parts, turns[1::2], strict=True):
        assert torch.allclose(part['action'].values, acted['content'][0]['action'].values, atol=1e-6)
    assert response.media[SAID].tolist() == [[True] * 4, [True, True, False, False]]
    # What fills a chunk up is where it ended, and what fills an action up is nothing.
    assert torch.equal(response.media[VALUES][1, 2:], response.media[VALUES][1, 1:2].expand(2, -1))
    assert not response.media[VALUES][:, :, 2:].any()


def test_draws_are_units_that_share_the_weight_of_their_turn(tiny: Tiny) -> None:
    spec = load_pi0_spec(tiny('pi0'), draws=3)
    (response,) = spec.encode(episode(4, 4)).responses
    assert response.units == 6 and float(response.weights.sum()) == pytest.approx(2.0)
    (response,) = spec.encode(episode(4, 4), 'last').responses
    assert response.units == 3


@pytest.mark.parametrize(
    ('spoil', 'told'),
    [
        (lambda turns: turns[1]['content'].append({'type': 'text', 'text': 'now'}), 'one action and nothing else'),
        (lambda turns: turns[0]['content'].pop(), 'without pictures'),
        (lambda turns: turns[2]['content'].append(turns[2]['content'][0]), 'shows 2 pictures, and should show 1'),
        (lambda turns: turns[0]['content'].pop(0), 'has no goal'),
        (lambda turns: turns[0]['content'][0].update(text='far ' * 60), 'the model reads 48'),
        (lambda turns: turns[0].update(state={'position': [0.1]}), 'its statistics 2'),
        (lambda turns: turns[0].update(state={'position': [0.1] * 9}), 'the model reads 8'),
        (lambda turns: turns.insert(1, seen(np.random.default_rng(9))), 'follow each other'),
    ],
)
def test_rows_that_are_no_episodes_of_it_are_named(spec: Pi0Spec, spoil: Callable[[Any], Any], told: str) -> None:
    turns = episode(4, 4)
    spoil(turns)
    with pytest.raises(SampleError, match=told):
        spec.encode(turns)


def test_a_chunk_that_is_too_long_is_named(spec: Pi0Spec) -> None:
    with pytest.raises(SampleError, match='holds 5 steps, and this model says 4'):
        spec.encode(episode(5))


def test_statistics_written_for_the_processor_become_those_of_the_space(copied: Path) -> None:
    theirs = read_json(copied / 'processor_config.json')
    (copied / 'action_space.json').unlink()
    space = load_pi0_spec(copied).space
    assert space.dataset == OF_CHECKPOINT and space.normalization == 'mean_std'
    assert list(space.of().mean) == theirs['actions_mean'] and list(space.of().std) == theirs['actions_std']
    # Those that are built into its class are of another robot.
    space = load_pi0_spec(change(copied, 'processor_config.json', actions_mean=None)).space
    assert not space.dimensions and not space.statistics and space.chunk == 4


def test_a_processor_that_normalises_otherwise_is_told(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_pi0_spec(copied)
        assert not caplog.records
        load_pi0_spec(change(copied, 'processor_config.json', actions_mean=[0.5, 0.5]))
    assert 'which are not the statistics in action_space.json' in caplog.text


@pytest.mark.parametrize(
    ('file', 'values', 'told'),
    [
        ('action_space.json', {'chunk': 8}, '4 steps in a chunk, and action_space.json has 8'),
        ('action_space.json', {'dimensions': list('abcdefghi'), 'statistics': {}}, '8 numbers in an action, not 9'),
        ('processor_config.json', {'state_mean': [0.0] * 9, 'state_std': [1.0] * 9}, '8 numbers in a state, not 9'),
    ],
)
def test_files_that_do_not_belong_together_are_named(
    copied: Path, file: str, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        load_pi0_spec(change(copied, file, **values))


def test_pictures_that_the_model_would_not_find_are_named(copied: Path) -> None:
    config = read_json(copied / 'config.json')
    config['vlm_config']['image_token_index'] += 1
    atomic_write_json(copied / 'config.json', config)
    with pytest.raises(ModelError, match='it would see none'):
        load_pi0_spec(copied)


def test_states_without_statistics_are_left_as_they_are(copied: Path) -> None:
    change(copied, 'processor_config.json', state_mean=None)
    example = load_pi0_spec(copied).encode(turns := episode(4))
    assert example.prompt.media[STATE][0, :2].tolist() == pytest.approx(turns[0]['state']['position'])
