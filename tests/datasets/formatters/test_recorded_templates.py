"""Recorded episodes in the layouts they are published in: the same pictures, actions and states from each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from align_anything.core.errors import DataError
from align_anything.core.types import Conversation, Example, Piece, Skipped
from align_anything.datasets.dataset import ExampleDataset, Remembering, SupervisedTask
from align_anything.datasets.formatters.chores_tasks import instruction_of
from align_anything.datasets.preference import PreferenceTask
from align_anything.datasets.prompts import PromptTask
from align_anything.datasets.source_loading import load_sources
from align_anything.testing import episodes as made
from align_anything.testing.episodes import CAMERAS, DIMENSIONS, Episode, episodes
from tests.datasets.fakes import write_rows


def encode(conversation: Conversation, train_on: str = 'all_assistant') -> Example:
    empty = Piece(torch.empty(0, dtype=torch.int64), torch.empty(0))
    return Example(empty, [Piece(torch.ones(1), torch.ones(1))])


def encode_group(conversations: list[Conversation], *_: Any, **__: Any) -> Example:
    responses = [Piece(torch.tensor([number]), torch.ones(1)) for number in range(len(conversations))]
    return Example(encode(conversations[0]).prompt, responses)


class Rows:
    """The rows of a source as a run sees them."""

    def __init__(self, source: Any, template: str, *, split: str | None = None, **options: Any) -> None:
        self.task = Remembering(SupervisedTask(encode))
        sources = load_sources(str(source), template, template_kwargs=options, split=split)
        self.dataset = ExampleDataset(sources, self.task, 'a_pair', frozenset({'image', 'action'}))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Conversation, dict[str, Any]]:
        example = self.dataset[row]
        assert isinstance(example, Example), example
        return self.task.conversations[0], example.meta

    def reason(self, row: int = 0) -> str:
        skipped = self.dataset[row]
        assert isinstance(skipped, Skipped)
        return skipped.reason


def pictures(conversation: Conversation) -> list[list[np.ndarray]]:
    seen = [turn['content'] for turn in conversation if turn['role'] == 'user']
    return [[np.asarray(part['image']) for part in parts if part['type'] == 'image'] for parts in seen]


def assert_shows(conversation: Conversation, episode: Episode, exact: bool = True, cameras: Any = CAMERAS) -> None:
    shown = pictures(conversation)
    assert len(shown) == episode.steps
    for number, camera in enumerate(cameras):
        found = np.stack([parts[number] for parts in shown]).astype(int)
        # Videos lose something; the square, the dark quarter and the brightness of each step are still there.
        assert np.abs(found - episode.frames(camera)[:-1]).mean() < (1e-9 if exact else 3.0)


def values(conversation: Conversation) -> np.ndarray:
    done = [turn['content'][0]['action'] for turn in conversation if turn['role'] == 'assistant']
    assert all(len(actions) == 1 for actions in done)
    return torch.cat([actions.values for actions in done]).numpy()


def states(conversation: Conversation, name: str) -> np.ndarray:
    return np.array([turn['state'][name] for turn in conversation if turn['role'] == 'user'])


def instruction(conversation: Conversation) -> str:
    said = [part['text'] for turn in conversation for part in turn['content'] if part['type'] == 'text']
    assert len(said) == 1 and conversation[0]['content'][0]['text'] == said[0]
    return said[0]


NUMERIC: dict[str, tuple[Callable[..., Any], str, dict[str, Any], str, bool]] = {
    'steps': (made.write_steps, 'Steps', {}, 'arm', True),
    'steps with videos': (lambda folder, some: made.write_steps(folder, some, videos=True), 'Steps', {}, 'arm', False),
    'lerobot 3': (made.write_lerobot, 'LeRobot', {}, 'state', False),
    'lerobot 2.1': (lambda folder, some: made.write_lerobot(folder, some, version=2), 'LeRobot', {}, 'state', False),
    'lerobot images': (
        lambda folder, some: made.write_lerobot(folder, some, pictures='image'),
        'LeRobot',
        {},
        'state',
        True,
    ),
    'libero': (made.write_libero, 'Libero', {}, 'ee_states', True),
    'aloha': (made.write_aloha, 'Aloha', {'instruction': 'push the square to the right'}, 'qpos', True),
    'aloha compressed': (
        lambda folder, some: made.write_aloha(folder, some, compressed=True),
        'Aloha',
        {'instruction': 'push the square to the right'},
        'qpos',
        True,
    ),
}


@pytest.mark.parametrize('name', NUMERIC)
def test_round_trip(name: str, tmp_path: Path) -> None:
    write, template, options, state, exact = NUMERIC[name]
    recorded = episodes(6, 9, 4)
    rows = Rows(write(tmp_path / 'data', recorded), template, **options)
    assert len(rows) == 3
    for number, episode in enumerate(recorded):
        conversation, meta = rows[number]
        assert instruction(conversation) == episode.instruction
        assert_shows(conversation, episode, exact)
        np.testing.assert_allclose(values(conversation), episode.actions, atol=1e-6)
        np.testing.assert_allclose(states(conversation, state), episode.state, atol=1e-6)
        assert len(meta['cameras']) == 2
        if 'rewards' in meta:
            assert meta['rewards'] == [0.0] * (episode.steps - 1) + [1.0]


@pytest.mark.parametrize('name', ['lerobot 3', 'lerobot 2.1', 'steps'])
def test_names_of_dimensions_ride_along(name: str, tmp_path: Path) -> None:
    write, template, options, _, _ = NUMERIC[name]
    _, meta = Rows(write(tmp_path / 'data', episodes(3)), template, **options)[0]
    assert meta['dimensions'] == list(DIMENSIONS)


@pytest.mark.parametrize('name', ['steps', 'lerobot 3', 'libero', 'aloha'])
def test_cameras_are_chosen_and_ordered_and_a_wrong_one_is_told(name: str, tmp_path: Path) -> None:
    write, template, options, _, exact = NUMERIC[name]
    source = write(tmp_path / 'data', episodes(4))
    _, meta = Rows(source, template, **options)[0]
    back = meta['cameras'][::-1]
    conversation, meta = Rows(source, template, **options, cameras=back)[0]
    assert meta['cameras'] == back
    assert_shows(conversation, episodes(4)[0], exact, CAMERAS[::-1])
    reason = Rows(source, template, **options, cameras=[back[0] + 's']).reason()
    assert f"has no camera '{back[0]}s'" in reason and f"Did you mean '{back[0]}'" in reason
    assert 'has no state' in Rows(source, template, **options, states=['joint']).reason()


def test_libero_turns_pictures_and_leaves_out_pauses(tmp_path: Path) -> None:
    recorded = episodes(8)
    path = made.write_libero(tmp_path, recorded, pauses=[2, 3])
    conversation, meta = Rows(path, 'Libero')[0]
    kept = [0, 1, 4, 5, 6, 7]
    assert meta['no_ops_left_out'] == 2 and meta['success']
    np.testing.assert_allclose(values(conversation), recorded[0].actions[kept], atol=1e-6)
    shown = np.stack([parts[0] for parts in pictures(conversation)])
    np.testing.assert_array_equal(shown, recorded[0].frames('front')[kept])
    np.testing.assert_allclose(states(conversation, 'ee_states'), recorded[0].state[kept], atol=1e-6)
    # As they lie in the file they are upside down.
    conversation, meta = Rows(path, 'Libero', rotate=0, keep_no_ops=True)[0]
    np.testing.assert_array_equal(pictures(conversation)[0][0], recorded[0].frames('front')[0, ::-1, ::-1])
    assert meta['no_ops_left_out'] == 0 and len(pictures(conversation)) == 8


def test_an_instruction_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    made.write_aloha(tmp_path / 'a', episodes(3))
    assert "train_template_kwargs {instruction: 'pick up the cup'}" in Rows(tmp_path / 'a', 'Aloha').reason()
    path = made.write_libero(tmp_path / 'b', episodes(3))
    with h5py.File(path, 'a') as file:
        file['data'].attrs['problem_info'] = json.dumps({'language_instruction': 'open the drawer'})
    assert instruction(Rows(path, 'Libero')[0][0]) == 'open the drawer'


# What users of LeRobotDataset meet


def test_a_clock_that_drifts_is_told_with_the_nearest_frame(tmp_path: Path) -> None:
    source = made.write_lerobot(tmp_path / 'a', episodes(20), drift=0.01)
    reason = Rows(source, 'LeRobot').reason()
    assert 'shows no frame within 0.05 s of' in reason and 'the nearest is frame' in reason
    # Less than half a frame is no other frame, unless a closer look is asked for.
    close = made.write_lerobot(tmp_path / 'b', episodes(20), drift=0.001)
    conversation, _ = Rows(close, 'LeRobot')[0]
    assert_shows(conversation, episodes(20)[0], exact=False)
    assert 'shows no frame within 0.0001 s' in Rows(close, 'LeRobot', tolerance=1e-4).reason()


@pytest.mark.parametrize('version', [2, 3])
def test_missing_and_truncated_files_cost_their_rows(version: int, tmp_path: Path) -> None:
    source = made.write_lerobot(tmp_path / 'a', episodes(5, 5), version=version)
    video = sorted(source.rglob('*.mp4'))[0]
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    assert video.name in Rows(source, 'LeRobot').reason(0)
    video.unlink()
    assert f"{video}' does not exist" in Rows(source, 'LeRobot').reason(0)
    if version == 2:
        assert len(Rows(source, 'LeRobot')[1][0]) == 10
        next(source.rglob('*000001.parquet')).unlink()
        assert 'does not exist' in Rows(source, 'LeRobot').reason(1)


def damaged(file: Any) -> None:
    del file['data']
    file['data'] = 1.0


@pytest.mark.parametrize('change', [None, damaged])
def test_an_hdf5_that_is_broken_costs_what_is_in_it(change: Any, tmp_path: Path) -> None:
    for name in ('a', 'b'):
        file = made.write_libero(tmp_path / name, episodes(3, 4)).rename(tmp_path / f'{name}.hdf5')
    if change is None:
        file.write_bytes(file.read_bytes()[:-2000])
    else:
        with h5py.File(file, 'a') as opened:
            change(opened)
    found = Rows(tmp_path, 'Libero')
    assert len(found) == 3 and found.reason(2) and found.dataset.name_of(2) == str(file)
    assert len(found[0][0]) == 6


def test_names_that_are_no_list_cost_their_row(tmp_path: Path) -> None:
    row = {'instruction': 'go', 'steps': [{'action': [1, 2]}], 'dimensions': 'xy'}
    file = write_rows(tmp_path / 'rows.jsonl', [row])
    assert "column 'dimensions' should be a list but is str" in Rows(file, 'Steps').reason()


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    source = made.write_lerobot(tmp_path / 'a', episodes(5, 5, 5))
    info = json.loads((source / 'meta/info.json').read_text())

    def with_info(**more: Any) -> None:
        (source / 'meta/info.json').write_text(json.dumps({**info, **more}))

    with_info(splits={'train': '0:2', 'val': '2:3'})
    assert (len(Rows(source, 'LeRobot')), len(Rows(source, 'LeRobot', split='val'))) == (2, 1)
    with_info(splits={'train': 'all'})
    with pytest.raises(DataError, match="a split of the episodes 'all'"):
        Rows(source, 'LeRobot')
    with_info(splits=['0:2'])
    with pytest.raises(DataError, match='cannot be read as LeRobotDataset'):
        Rows(source, 'LeRobot')
    with_info(codebase_version='v1.6')
    with pytest.raises(DataError, match=r'LeRobotDataset v1\.6; versions 2 and 3 can be read'):
        Rows(source, 'LeRobot')
    # A path is filled with numbers and nothing else, and stays in the folder.
    with_info(data_path='data/{episode_index.__class__}.parquet')
    assert 'does not exist' in Rows(source, 'LeRobot').reason()
    with_info(data_path='../{chunk_index:03d}.parquet')
    assert 'leads out of its folder' in Rows(source, 'LeRobot').reason()
    with_info(data_path='data/{house}.parquet')
    assert "a field 'house', which nothing tells" in Rows(source, 'LeRobot').reason()
    file = write_rows(tmp_path / 'rows.jsonl', [{'a': 1}])
    assert 'give its folder, with meta/info.json in it' in Rows(file, 'LeRobot').reason()


def test_an_episode_whose_task_changes_is_left_out(tmp_path: Path) -> None:
    source = made.write_lerobot(tmp_path / 'a', [Episode(0, 4, 'open the door'), Episode(1, 4, 'close the door')])
    file = source / 'data/chunk-000/file-000.parquet'
    table = parquet.read_table(file)
    changed = pa.array([0, 0, 1, 1, 1, 1, 1, 1])
    parquet.write_table(table.set_column(table.column_names.index('task_index'), 'task_index', changed), file)
    rows = Rows(source, 'LeRobot')
    assert "has 2 tasks, 'open the door' and 'close the door'" in rows.reason()
    assert instruction(rows[1][0]) == 'close the door'


# CHORES


@pytest.fixture
def chores(tmp_path: Path) -> Path:
    made.write_chores(tmp_path / 'PickupType', episodes(6, 9, 4))
    return made.write_chores(tmp_path / 'PickupType', episodes(5), split='val')


def test_chores(chores: Path) -> None:
    rows = Rows(chores, 'Chores')
    assert (len(rows), len(Rows(chores, 'Chores', split='val'))) == (3, 1)
    seen = {}
    for row in range(3):
        conversation, meta = rows[row]
        number = int(rows.dataset.name_of(row).rpartition('/')[2].partition(':')[0])
        episode = seen[number] = episodes(6, 9, 4)[number]
        assert_shows(conversation, episode, exact=False)
        done = [turn['content'][0]['action'].names for turn in conversation if turn['role'] == 'assistant']
        assert [name for (name,) in done] == episode.names
        assert instruction(conversation).endswith(' an apple')
        assert meta['cameras'] == ['raw_navigation_camera', 'raw_manipulation_camera']
        assert len(meta['action_names']) == 20 and meta['task_type'] == 'PickupType'
        assert meta['initial_agent_location'] == [0, 1, 2, 3, 4, 5]
        assert all('state' not in turn for turn in conversation)
    assert len(seen) == 3


def test_chores_with_sensors(chores: Path) -> None:
    sensors = ['raw_manipulation_camera', 'last_actions', 'an_object_is_in_hand', 'nav_task_relevant_object_bbox']
    made.write_chores(
        chores,
        episodes(5),
        split='val',
        task={
            'task_type': 'ObjectNavType',
            'synsets': ['garbage_can.n.01'],
            'broad_synset_to_object_ids': {'apple.n.01': ['apple_2', 'apple_1', 'elsewhere']},
        },
        short_names=False,
    )
    conversation, meta = Rows(chores, 'Chores', split='val', input_sensors=sensors)[0]
    assert meta['cameras'] == ['raw_manipulation_camera']
    assert_shows(conversation, episodes(5)[0], False, ['wrist'])
    # What was sensed before the last action: nothing is in the hand yet.
    assert states(conversation, 'an_object_is_in_hand').ravel().tolist() == [0, 0, 0, 0, 0]
    boxes = states(conversation, 'nav_task_relevant_object_bbox')
    # The larger one of the two boxes, and none of a second object.
    assert boxes.tolist() == [[5, 5, 9, 8, 12, 1000, 1000, 1000, 1000, 0]] * 5
    assert instruction(conversation).endswith(' a garbage can')
    assert "no sensor 'smell'" in Rows(chores, 'Chores', split='val', input_sensors=[*sensors, 'smell']).reason()


def test_an_action_too_many_leaves_the_recording_out(tmp_path: Path) -> None:
    source = made.write_chores(tmp_path / 'a', [Episode(0, 5, shift=1), Episode(1, 5)])
    rows = Rows(source, 'Chores')
    reasons = [made.reason for made in (rows.dataset[row] for row in range(2)) if isinstance(made, Skipped)]
    assert len(reasons) == 1 and 'has 6 frames and the episode 6 actions: there should be one frame more' in reasons[0]


def test_text_of_a_recording_is_never_run(tmp_path: Path) -> None:
    source = made.write_chores(tmp_path / 'a', [Episode(0, 3)], task={'task_type': 'ObjectNavType', 'synsets': ['a']})
    with h5py.File(source / 'train/000000/hdf5_sensors.hdf5', 'a') as file:
        box = file['0/nav_task_relevant_object_bbox']
        del box['oids_as_bytes']
        box['oids_as_bytes'] = np.frombuffer(b"[open('/tmp/x', 'w')]", np.uint8)[None]
    sensors = ['raw_navigation_camera', 'nav_task_relevant_object_bbox']
    assert 'is no list of names' in Rows(source, 'Chores', input_sensors=sensors).reason()


@pytest.mark.parametrize(
    ('task', 'said'),
    [
        ({'task_type': 'FetchType', 'synsets': ['mug.n.04']}, ' a mug and '),
        ({'task_type': 'RoomVisit', 'num_rooms_in_house': 3}, 'go to all 3 rooms'),
        (
            {'task_type': 'ObjectNavMulti', 'synsets': ['egg', 'cup', 'fork']},
            ' an egg, a cup, and a fork, in that order',
        ),
        ({'task_type': 'ObjectNavRoom', 'synsets': ['bed'], 'room_type': 'Bedroom'}, ' a bed in the bedroom'),
        (
            {
                'task_type': 'ObjectNavLocalRef',
                'synsets': ['bed'],
                'reference_type': 'on',
                'reference_synsets': ['rug'],
            },
            ' a bed on a rug',
        ),
        (
            {
                'task_type': 'ObjectNavRelAttribute',
                'synsets': ['chair.n.01'],
                'rel_attribute': ['closest', 'sofa'],
                'room_type': 'kitchen',
            },
            ' the chair closest to the sofa in the kitchen',
        ),
    ],
)
def test_tasks_in_words(task: dict[str, Any], said: str) -> None:
    told = {instruction_of(task, f'episode {number}') for number in range(40)}
    assert all(said in words for words in told)
    assert instruction_of(task, 'episode 1') == instruction_of(task, 'episode 1')
    # Of the words that there are for it, each comes up.
    assert len(told) >= (1 if task['task_type'] == 'RoomVisit' else 5)


# Plain rows


STEP = {'action': 'left', 'image': 'a.png'}


@pytest.mark.parametrize(
    ('row', 'told'),
    [
        ({'steps': [STEP]}, 'nothing says what was to be done'),
        ({'instruction': 'Go.', 'steps': []}, 'the episode has no steps'),
        ({'instruction': 'Go.'}, "no list of records as 'steps'"),
        ({'instruction': 'Go.', 'steps': [{'image': 'a.png'}]}, 'step 0 has'),
        ({'instruction': 'Go.', 'steps': [{**STEP, 'acton': 'x'}]}, 'step 0 has acton, which nothing reads'),
        ({'instruction': 'Go.', 'steps': [STEP, {'action': [1.0]}]}, 'some actions of the episode are names'),
        ({'instruction': 'Go.', 'steps': [STEP, {'action': 'left'}]}, "step 1 has no picture of camera 'camera'"),
        ({'instruction': 'Go.', 'steps': [{**STEP, 'state': [1]}, STEP]}, "step 1 has no state 'state'"),
        ({'instruction': 'Go.', 'steps': [{'action': [1]}, {'action': [1, 2]}]}, 'have 1 and 2 numbers'),
        ({'instruction': 'Go.', 'steps': [{'action': [[1], [2]]}]}, 'chunks of several'),
    ],
)
def test_rows_that_are_no_episodes(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert told in Rows(write_rows(tmp_path / 'a.jsonl', [row]), 'Steps').reason()


def test_a_video_of_another_length_is_told(tmp_path: Path) -> None:
    source = made.write_steps(tmp_path, episodes(6), videos=True)
    row = json.loads(source.read_text())
    row['steps'] = row['steps'][:3]
    source.write_text(json.dumps(row))
    assert 'has 7 frames, but each of the 3 actions' in Rows(source, 'Steps').reason()


def test_two_episodes_from_one_start(tmp_path: Path) -> None:
    rows = [
        {
            'instruction': 'Go.',
            'seed': 3,
            'better': {'steps': [{'action': 'left', 'state': [0]}, {'action': 'up', 'state': [1]}], 'success': True},
            'worse': [{'action': 'right', 'state': [0]}, {'action': 'down', 'state': [2]}],
        }
    ]
    task = Remembering(PreferenceTask(encode_group))
    sources = load_sources(write_rows(tmp_path / 'a.jsonl', rows), 'Steps')
    example = ExampleDataset(sources, task, 'a_pair', frozenset({'action'}))[0]
    assert isinstance(example, Example) and example.meta['seed'] == 3
    better, worse = task.conversations
    assert better[0] == worse[0] and better[2]['state'] == {'state': (1.0,)} and worse[2]['state'] == {'state': (2.0,)}
    done = [[turn['content'][0]['action'].names[0] for turn in turns[1::2]] for turns in (better, worse)]
    assert done == [['left', 'up'], ['right', 'down']]


def test_a_prompt_is_what_stands_before_the_first_action(tmp_path: Path) -> None:
    source = made.write_steps(tmp_path, episodes(5), named=True)
    said: list[Conversation] = []
    task = PromptTask(lambda messages: said.append(messages) or Piece(torch.ones(1), torch.zeros(1)), 10)
    example = ExampleDataset(load_sources(str(source), 'Steps'), task, 'a_pair', frozenset({'image'}))[0]
    assert isinstance(example, Example) and example.meta['seed'] == 0
    ((turn,),) = said
    assert turn['role'] == 'user' and len(turn['content']) == 3


# Without a template


@pytest.mark.parametrize('name', [*NUMERIC, 'chores', 'messages'])
def test_recordings_are_known_by_what_they_are(name: str, tmp_path: Path) -> None:
    turns = [{'role': 'user', 'content': 'Go.'}, {'role': 'assistant', 'content': [{'type': 'action', 'action': 'up'}]}]
    others = {
        'chores': lambda folder, some: made.write_chores(folder, some),
        'messages': lambda folder, some: write_rows(tmp_path / 'a.jsonl', [{'messages': turns}]),
    }
    write, template = (others[name], name.title()) if name in others else NUMERIC[name][:2]
    (source,) = load_sources(str(write(tmp_path / 'data', episodes(3))), None, writes=frozenset({'action'}))
    assert source.formatter.name == template


def test_rows_that_are_no_recordings_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'its columns \(a\) are those of no recording .* steps \(Steps\)'):
        load_sources(write_rows(tmp_path / 'a.jsonl', [{'a': 1}]), None, writes=frozenset({'action'}))
