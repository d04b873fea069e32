"""Each dataset of a mixture has statistics of its own; what a policy says has those of the dataset that is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.evaluate import Evaluate
from align_anything.algorithms.generate import Generate, Generating
from align_anything.core.actions import ActionSpace, Statistics
from align_anything.core.errors import DataError, ModelError, SettingsError
from align_anything.core.types import Message, Skipped
from align_anything.environments.demonstrations import write_demonstrations
from align_anything.environments.worlds.reach import Reach
from align_anything.models.acting.configuration import SpocConfig
from align_anything.models.action_space import read_action_space
from align_anything.serve.settings import Chat, Serve
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs import action_spaces
from align_anything.trainers.runs.action_spaces import acting
from align_anything.trainers.runs.data import _with_statistics, open_sources, unread_dataset
from align_anything.trainers.runs.generator import _require_no_actions
from tests.trainers.runs import lines, run, sft, succeed, write_rows

PAIR = PAIRS['text_video_to_action']
ARM = ActionSpace(dimensions=('x', 'gripper'), normalization='min_max', tokens='tail', first_ids=(300, 300))


class Blind(Reach):
    """Tells nothing of the body."""

    def _shown(self, instruction: str = '') -> Message:
        return {key: value for key, value in super()._shown(instruction).items() if key != 'state'}


class Policy:
    """What `acting` needs of the rules of a model that acts."""

    unit = 'action'
    sensors = ()

    def __init__(self, space: ActionSpace | None = ARM, reads: bool = False) -> None:
        self.space, self.reads = space, reads

    def act_in(self, space: ActionSpace) -> None:
        self.space = space

    def reads_state(self, name: str) -> bool:
        return self.reads


def episodes(path: Path, farthest: float, states: float | None = None) -> Path:
    """Three episodes of three steps, of which the first and the last move farthest."""
    moves = [[-farthest, 0.5, farthest], [0.0, 0.1, 0.2], [-farthest, farthest, 0.0]]

    def step(at: int, move: float) -> dict[str, Any]:
        told = {} if states is None else {'state': {'joints': [at * states], 'height': [1.0, -at * states]}}
        return {'image': 'seen.png', 'action': [move, float(at % 2)], **told}

    rows = [{'instruction': 'reach', 'steps': [step(at, move) for at, move in enumerate(own)]} for own in moves]
    return write_rows(path, rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    episodes(tmp_path / 'near.jsonl', 1.0)
    episodes(tmp_path / 'far.jsonl', 10.0)
    return tmp_path


def opened(
    names: list[str],
    folder: Path,
    space: ActionSpace | None = ARM,
    *more: str,
    algorithm: str = 'sft',
    kept: ActionSpace | None = None,
    reads: bool = False,
) -> Any:
    """The space that a run acts in, and its sources."""
    files = [str(folder / f'{name}.jsonl') for name in names]
    argv = ['--model_name_or_path', 'arm', '--output_dir', str(folder / 'out'), '--train_template', 'Steps']
    argv += ['--train_datasets', *([f'[{", ".join(files)}]'] if len(files) > 1 else files), *more]
    kind = known_algorithms()[algorithm]
    resolved = settings_of(PAIR, kind, argv, {})
    cfgs, policy = resolved.cfgs, Policy(space, reads)
    sources = open_sources(cfgs, PAIR.writes)
    rows = unread_dataset(sources.training, PAIR, resolved.algorithm, cfgs.data_cfgs.train_on)
    acting(cfgs, policy, resolved.algorithm, rows, kept)
    return policy.space, _with_statistics(sources, policy.space, cfgs.action_cfgs, resolved.algorithm)


def first_row(source: Any) -> Any:
    settings = settings_of(
        PAIR,
        known_algorithms()['sft'],
        ['--model_name_or_path', 'arm', '--train_datasets', 'a', '--output_dir', 'o'],
        {},
    )
    rows = unread_dataset([source], PAIR, settings.algorithm, 'all_assistant')
    made = rows.formatted(0)
    assert not isinstance(made, Skipped)
    return made[0]


def test_each_dataset_of_a_mixture_has_its_own(folder: Path) -> None:
    space, sources = opened(['near', 'far'], folder)
    assert {name: own.high[0] for name, own in space.statistics.items()} == {'near.jsonl': 1.0, 'far.jsonl': 10.0}
    assert space.dataset == ''
    for source, farthest in zip(sources.training, (1.0, 10.0), strict=True):
        turns = first_row(source)
        (first, _, last) = (turn['content'][0]['action'] for turn in turns if turn['role'] == 'assistant')
        assert first.dataset == source.statistics == f'{"near" if farthest == 1 else "far"}.jsonl'
        # The same token is the end of the way of each.
        assert space.normalized(last.values, last.dataset)[0, 0] == 1.0
        assert space.encode(first)[0, 0] == 0 and space.encode(last)[0, 0] == 255
        assert space.decode(space.encode(last), last.dataset).values[0, 0] == pytest.approx(farthest, rel=0.01)


def test_those_of_a_checkpoint_stay_where_names_match(folder: Path) -> None:
    published = Statistics((-5.0, 0.0), (5.0, 1.0), (0.0, 0.5), (1.0, 0.5), (True, False))
    known = replace(ARM, statistics={'far.jsonl': published, 'bridge': published})
    space, sources = opened(['near', 'far'], folder, known)
    assert space.statistics['far.jsonl'] is published and space.statistics['near.jsonl'].high[0] == 1.0
    assert sorted(space.statistics) == ['bridge', 'far.jsonl', 'near.jsonl']
    # A single dataset goes by its name, by that which is named, or by all that the checkpoint knows.
    space, (source, *_) = (lambda space, sources: (space, sources.training))(*opened(['far'], folder, known))
    assert space.dataset == source.statistics == 'far.jsonl' and space.statistics == known.statistics
    space, sources = opened(['far'], folder, known, '--action_dataset', 'bridge')
    assert space.dataset == sources.training[0].statistics == 'bridge'
    space, sources = opened(['near'], folder, replace(ARM, statistics={'bridge': published}))
    assert sources.training[0].statistics == 'bridge' and sorted(space.statistics) == ['bridge']
    with pytest.raises(SettingsError, match='name one of bridge, far.jsonl'):
        opened(['near'], folder, known)


def test_datasets_of_a_mixture_have_numbers_of_one_kind(folder: Path) -> None:
    rows = [{'instruction': 'reach', 'steps': [{'image': 'seen.png', 'action': [0.1, 0.2, 0.3]}]}]
    write_rows(folder / 'other.jsonl', rows)
    with pytest.raises(
        DataError, match=r'dimensions \(x, gripper\), but .* of the training data \(other.jsonl\) have 3'
    ):
        opened(['near', 'other'], folder)
    bare = replace(ARM, dimensions=(), first_ids=())
    with pytest.raises(DataError, match='actions of near.jsonl have 2 numbers, and those of other.jsonl 3'):
        opened(['near', 'other'], folder, bare)


def test_published_files_hold_where_they_are_named(folder: Path) -> None:
    file = folder / 'dataset_statistics.json'
    columns = {'q01': [-3, 0], 'q99': [3, 1], 'min': [-4, 0], 'max': [4, 1], 'mean': [0, 0], 'std': [1, 1]}
    file.write_text(json.dumps({'far.jsonl': {'action': {**columns, 'mask': [True, False]}}}))
    known = replace(ARM, statistics={'far.jsonl': Statistics((-9, 0), (9, 1), (0, 0), (1, 1), (True, True))})
    space, _ = opened(['near', 'far'], folder, known, '--action_statistics', str(file))
    assert space.statistics['far.jsonl'].high == (4.0, 1.0) and space.statistics['far.jsonl'].mask == (True, False)
    assert space.statistics['near.jsonl'].high[0] == 1.0
    with pytest.raises(SettingsError, match='whatever is trained later keeps its statistics'):
        opened(['far'], folder, known, '--action_statistics', str(file), algorithm='dpo')


@pytest.mark.parametrize('algorithm', ['sft', 'dpo', 'grpo'])
def test_a_wrong_name_lists_those_there_are(folder: Path, algorithm: str) -> None:
    known, _ = opened(['near', 'far'], folder)
    more = ['--environment', 'hot_floor'] if algorithm == 'grpo' else []
    with pytest.raises(
        SettingsError, match=r"no statistics of neer.jsonl .*\(far.jsonl, near.jsonl\).*mean 'near.jsonl'"
    ):
        opened(['near', 'far'], folder, known, '--action_dataset', 'neer.jsonl', *more, algorithm=algorithm)


def test_who_speaks_has_to_know_of_which(folder: Path) -> None:
    known, _ = opened(['near', 'far'], folder)
    world = ['--environment', 'hot_floor']
    with pytest.raises(SettingsError, match='nothing says which un-normalise the actions: name one of far.jsonl, near'):
        opened(['near'], folder, known, *world, algorithm='grpo')
    space, sources = opened(['near'], folder, known, '--action_dataset', 'far.jsonl', *world, algorithm='grpo')
    assert space.dataset == 'far.jsonl' and not sources.training[0].statistics
    # Data that nobody has statistics of, and data that are evaluated on under another name.
    held_out = ['--eval_datasets', str(episodes(folder / 'held_out.jsonl', 2.0)), '--eval_template', 'Steps']
    held_out += ['--eval_strategy', 'epoch']
    with pytest.raises(SettingsError, match=r'Those of .*held_out.jsonl are of none of these'):
        opened(['near', 'far'], folder, known, *held_out)
    _, sources = opened(['near', 'far'], folder, known, *held_out, '--action_dataset', 'near.jsonl')
    assert [source.statistics for source in sources.training] == ['near.jsonl', 'far.jsonl']
    assert sources.evaluation[0].statistics == 'near.jsonl'
    with pytest.raises(SettingsError, match='there are no statistics of any dataset'):
        opened(['near', 'far'], folder, ARM, algorithm='dpo')


@pytest.mark.parametrize(
    ('pair', 'algorithm'),
    [('any_to_any', Serve), ('any_to_any', Chat), (PAIR.name, Evaluate), (PAIR.name, Generate)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_whatever_generates_is_told_of_which(folder: Path, pair: str, algorithm: type[Generating]) -> None:
    known, _ = opened(['near', 'far'], folder)
    argv = [
        '--model_name_or_path',
        'arm',
        *(['--output_dir', 'o', '--train_datasets', 'd'] if pair == PAIR.name else []),
    ]
    argv += ['--tasks', '[cer]'] if algorithm is Evaluate else []

    def spoken(*more: str) -> ActionSpace | None:
        resolved, policy = settings_of(PAIRS[pair], algorithm, [*argv, *more], {}), Policy(known)
        acting(resolved.cfgs, policy, resolved.algorithm)
        return policy.space

    assert spoken('--action_dataset', 'far.jsonl').dataset == 'far.jsonl'
    for more, reason in (
        ((), 'name one of far.jsonl, near.jsonl'),
        (('--action_dataset', 'x'), r'\(far.jsonl, near.jsonl'),
    ):
        with pytest.raises(SettingsError, match=reason):
            spoken(*more)
    with pytest.raises(SettingsError, match='action_dataset: arm says no actions of numbers here; leave it out'):
        _require_no_actions(settings_of(PAIRS[pair], algorithm, [*argv, '--action_dataset', 'x'], {}).cfgs, 'arm')


def test_a_run_that_goes_on_computes_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = opened(['near', 'far'], folder)
    # The data have grown meanwhile.
    episodes(folder / 'near.jsonl', 100.0)
    monkeypatch.setattr(action_spaces, 'seen_in', lambda *_: pytest.fail('the data are gone through again'))
    again, sources = opened(['near', 'far'], folder, ARM, kept=first)
    assert again == first and sources.training[0].statistics == 'near.jsonl'


@pytest.mark.parametrize(
    ('version', 'reason'),
    [
        ('small_3', None),
        ('small_6', 'arm is no small_6: fusion_layers is 3, and that of small_6 is 6; decoder_layers is 3'),
        ('base_6', 'hidden_size is 512, and that of base_6 is 768.* vision_config.hidden_size is 384'),
        ('smal_3', "no version 'smal_3'. Did you mean 'small_3'"),
    ],
)
def test_a_checkpoint_is_of_the_version_that_is_named(folder: Path, version: str, reason: str | None) -> None:
    policy = Policy()
    vision = {'model_type': 'dinov2', 'hidden_size': 384, 'num_attention_heads': 6}
    policy.config = SpocConfig(vision_config=vision, vocab_size=9)
    argv = ['--model_name_or_path', 'arm', '--output_dir', 'o', '--train_datasets', 'd', '--model_version', version]
    resolved = settings_of(PAIR, known_algorithms()['grpo'], [*argv, '--environment', 'hot_floor'], {})
    policy.space = replace(ARM, normalization='identity')
    with nullcontext() if reason is None else pytest.raises(ModelError, match=reason):
        acting(resolved.cfgs, policy, resolved.algorithm)


def test_pictures_that_are_turned_otherwise_than_the_policy_saw_them_are_refused(folder: Path) -> None:
    seen = replace(ARM, pictures={'rotate': 180})
    with pytest.raises(DataError, match=r"arm saw pictures with \{'rotate': 180\} .* they would be upside down to it"):
        opened(['near'], folder, seen)
    turned = ['--train_template_kwargs', '{rotate: 180}']
    assert opened(['near'], folder, seen, *turned)[0].pictures == {'rotate': 180}
    one = ['--train_template_kwargs', '[{rotate: 180}, {flip: vertical}]']
    with pytest.raises(DataError, match='some pictures of the training data are turned or scaled otherwise'):
        opened(['near', 'far'], folder, ARM, *one)


def test_actions_that_are_not_normalised_have_no_dataset(folder: Path) -> None:
    space = replace(ARM, normalization='identity')
    with pytest.raises(SettingsError, match='not normalised, by no dataset; leave it out'):
        opened(['near'], folder, space, '--action_dataset', 'near.jsonl')
    assert opened(['near', 'far'], folder, space)[1].training[0].statistics == ''


# States


def test_states_have_statistics_too_and_are_told_in_bins(folder: Path) -> None:
    episodes(folder / 'near.jsonl', 1.0, states=1.0)
    episodes(folder / 'far.jsonl', 1.0, states=10.0)
    space, sources = opened(['near', 'far'], folder, ARM, '--action_states', '[height, joints]')
    assert space.states == ('height', 'joints') and sorted(space.state_statistics) == ['far.jsonl', 'near.jsonl']
    for source, scale in zip(sources.training, (1.0, 10.0), strict=True):
        own = space.state_statistics[source.statistics]
        # One number of the first state does not vary; percentiles lie a little within what was seen.
        assert own.low[0] == own.high[0] == 1.0 and own.high[2] == pytest.approx(2 * scale, rel=0.05)
        turns = [turn for turn in first_row(source) if turn['role'] == 'user']
        assert all(turn['dataset'] == source.statistics for turn in turns)
        assert [space.state_bins(turn['state'], turn['dataset']) for turn in turns] == [
            [128, 255, 0],
            [128, 128, 128],
            [128, 0, 255],
        ]
    # Those that the checkpoint has are in force without being named, and no others.
    assert opened(['near', 'far'], folder, space)[0].state_statistics == space.state_statistics
    with pytest.raises(SettingsError, match='the action space of arm has height, joints'):
        opened(['near', 'far'], folder, space, '--action_states', '[joints]')
    with pytest.raises(
        SettingsError, match=r"far.jsonl tells no state 'joint'. Did you mean 'joints'\? .*: joints, he"
    ):
        opened(['far'], folder, ARM, '--action_states', '[joint]')


@pytest.mark.parametrize('reads', [False, True])
def test_states_that_nobody_reads_are_told_of(folder: Path, caplog: pytest.LogCaptureFixture, reads: bool) -> None:
    episodes(folder / 'near.jsonl', 1.0, states=1.0)
    opened(['near', 'far'], folder, reads=reads)
    told = [record.getMessage() for record in caplog.records if 'does not read' in record.getMessage()]
    assert len(told) == (0 if reads else 1) and all('joints, height of the body' in line for line in told)


@pytest.mark.extended
def test_from_a_mixture_to_what_is_generated(tiny: Callable[..., Path], tmp_path: Path) -> None:
    Image.new('RGB', (28, 28), 'red').save(tmp_path / 'seen.png')
    near, far = episodes(tmp_path / 'near.jsonl', 1.0, 1.0), episodes(tmp_path / 'far.jsonl', 10.0, 10.0)
    out, common = tmp_path / 'sft', {'model_max_length': 512, 'max_steps': 2, 'save_interval': 1, 'save_total_limit': 9}
    given = {'action_tokens': 'tail', 'action_dimensions': '[x, gripper]', 'action_states': '[joints]'}
    argv = sft(out, tiny('qwen2_5_vl'), f'[{near}, {far}]', template='Steps', **common, **given)
    told = succeed(argv, pair=PAIR)
    assert 'actions of near.jsonl, far.jsonl: 6 episodes' in told and 'tell of height of the body, which' in told
    space = read_action_space(out / 'slice_end')
    assert sorted(space.statistics) == sorted(space.state_statistics) == ['far.jsonl', 'near.jsonl']
    assert space.dataset == '' and read_action_space(out / 'slice_1') == space
    # It goes on with what it began with, though the data have changed.
    episodes(tmp_path / 'near.jsonl', 100.0, 1.0)
    for name in ('slice_2', 'slice_end'):
        shutil.rmtree(out / name, ignore_errors=True)
    assert 'actions of' not in succeed([*argv, '--resume', 'auto'], pair=PAIR)
    assert read_action_space(out / 'slice_end') == space
    turn = {'role': 'user', 'content': [{'type': 'text', 'text': 'reach'}, {'type': 'image', 'image': 'seen.png'}]}
    write_rows(tmp_path / 'prompts.jsonl', [{'prompt': [{**turn, 'state': {'joints': [1.0]}}]}] * 4)
    ask = ['--model_name_or_path', str(out / 'slice_end'), '--train_datasets', str(tmp_path / 'prompts.jsonl')]
    ask += ['--train_template', 'Prompts', '--max_new_tokens', '3', '--num_workers', '0', '--bf16', 'False']
    for chosen, reason in (([], 'name one of far.jsonl, near.jsonl'), (['x'], '(far.jsonl, near.jsonl)')):
        more = [part for name in chosen for part in ('--action_dataset', name)]
        (ended,) = run([*ask, *more, '--output_dir', str(tmp_path / 'no')], pair=PAIR, algorithm=Generate)
        assert ended.code == 2 and reason in ' '.join(ended.output.split())
    farthest = {}
    for name in ('near', 'far'):
        more = ['--action_dataset', f'{name}.jsonl', '--output_dir', str(tmp_path / name)]
        succeed([*ask, *more], pair=PAIR, algorithm=Generate)
        written = json.dumps(lines(tmp_path / name / 'generations.jsonl'))
        farthest[name] = [abs(float(x)) for x in re.findall(r'\[\[(-?[0-9.e-]+), ', written)]
    # The same tokens, since the seeds are the same; the arm goes ten times as far.
    assert farthest['near'] and max(farthest['near']) <= 1
    assert farthest['far'] == pytest.approx([10 * x for x in farthest['near']])


@pytest.mark.extended
def test_a_policy_reads_its_state_in_an_environment(tiny: Callable[..., Path], tmp_path: Path) -> None:
    write_demonstrations('reach', {}, tmp_path, 4, prompts=4)
    common = {'model_max_length': 1024, 'max_steps': 1}
    given = {'action_tokens': 'tail', 'action_states': '[position]'}
    argv = sft(tmp_path / 'sft', tiny('qwen2_5_vl'), tmp_path / 'demonstrations.jsonl', template='Messages', **common)
    told = succeed([*argv, *(part for key, value in given.items() for part in (f'--{key}', value))], pair=PAIR)
    assert 'does not read' not in told
    settings = {
        'train_template_kwargs': '{keep_columns: True}', 'environment': 'reach', 'max_turns': 3, 'max_new_tokens': 3,
        'num_generations': 2, 'per_device_prompt_batch_size': 2, 'per_device_train_batch_size': 4, 'log_completions': 1,
    }  # fmt: skip
    acts, grpo = (tmp_path / 'sft' / 'slice_end', tmp_path / 'prompts.jsonl'), known_algorithms()['grpo']
    succeed(sft(tmp_path / 'grpo', *acts, template='Prompts', **common, **settings), pair=PAIR, algorithm=grpo)
    (record,) = [own for own in lines(tmp_path / 'grpo' / 'metrics.jsonl') if 'train/turns' in own]
    assert record['train/rollout_drift'] < 1e-5 and record['train/turns'] > 1
    # Where the world tells none, it is told so, and nothing is made up for it.
    settings['environment'] = f'{__file__}:Blind'
    argv = sft(tmp_path / 'blind', *acts, template='Prompts', **common, **settings)
    (ended,) = run(argv, pair=PAIR, algorithm=grpo)
    assert ended.code and 'a step tells no state (position), which the policy reads' in ' '.join(ended.output.split())


def test_cameras_in_another_order_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {'wrist': 'w.png', 'front': 'f.png'}
    step = {'images': images, 'action': [0.5, 1.0]}
    write_rows(folder / 'two.jsonl', [{'instruction': 'reach', 'steps': [step, step]}])
    seen = replace(ARM, cameras=('front', 'wrist'))
    with pytest.raises(DataError, match=r'arm sees the cameras front, wrist in this order, .* have wrist, front'):
        opened(['two'], folder, seen)
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(action_spaces.logger, 'warning', lambda *words: told.append(words))
    ordered = ['--train_template_kwargs', '{cameras: [front, wrist]}']
    assert opened(['two'], folder, seen, *ordered)[0].cameras == ('front', 'wrist') and not told
    opened(['two'], folder, seen, '--train_template_kwargs', '{cameras: [wrist]}')
    assert told[0][1:] == ('arm', 'front, wrist', 'wrist')


def test_the_start_tells_how_many_steps_are_said_and_done_in_a_turn() -> None:
    single = action_spaces.told(ActionSpace(names=('up', 'down')))
    assert single == 'up, down; by a head of their own; one step in a turn'
    some = ActionSpace(names=('up', 'down'), chunk=4, executed=2)
    assert action_spaces.told(some).endswith('; 4 steps in a turn, 2 of them done')
