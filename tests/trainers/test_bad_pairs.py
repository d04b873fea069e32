"""Preference data and settings that cannot be used: the row is left out with its reason, or the run stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.cli.leaves import find_run
from align_anything.core.errors import AlignAnythingError, DataError, SettingsError
from align_anything.core.types import Example, Skipped
from align_anything.models.pretrained_model import load_spec
from align_anything.trainers.launch import settings_of
from align_anything.trainers.runs.checks import check_reference
from align_anything.trainers.runs.data import make_dataset, open_sources, probe
from align_anything.trainers.runs.offline import train
from align_anything.trainers.runs.scoring import score
from tests.trainers.runs import lines, run, sft, write_rows

GOOD = {'prompt': 'name a fish', 'chosen': 'salt sea', 'rejected': 'stone'}
LABELLED = {'prompt': 'name a fish', 'completion': 'salt sea', 'label': True}
RATED = {'prompt': 'name a fish', 'responses': ['sea', 'sky'], 'ratings': [2, 1]}
COST = {'prompt': 'how', 'response_0': 'so', 'response_1': 'no', 'safer_response_id': 1}
SAFETY = {'is_response_0_safe': False, 'is_response_1_safe': True}
USER, REPLY = {'role': 'user', 'content': 'sun'}, {'role': 'assistant', 'content': 'sea'}
OTHER = {'role': 'assistant', 'content': 'stone'}
SEEN = {'role': 'user', 'content': [{'type': 'image', 'image': 'red.png'}, {'type': 'text', 'text': 'sun'}]}
LONG = 'moon ' * 200

Opened = Callable[..., list[Example | Skipped]]


def planned(algorithm: str, model: Path, rows: Path, template: str, pair: str = 'text_to_text', **settings: Any) -> Any:
    """What a run does before it loads weights: the settings, the sources and the first rows are looked at."""
    its_pair, kind = find_run(pair, algorithm)
    argv = sft(rows.parent / 'run', model, rows, template=template, **settings)
    resolved = settings_of(its_pair, kind, argv, {})
    check_reference(resolved.cfgs, resolved.algorithm)
    sources = open_sources(resolved.cfgs)
    probe(sources, its_pair, resolved.algorithm, resolved.cfgs.data_cfgs.train_on)
    return sources, its_pair, resolved


@pytest.fixture
def opened(tiny: Callable[..., Path], tmp_path: Path) -> Opened:
    """`opened('dpo', 'Preference', rows)`: the rows as Examples, or left out, in the way of a run."""
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'red.png')

    def examples(algorithm: str, template: str, rows: list[Any], pair: str = 'text_to_text') -> list[Any]:
        model = tiny('llava' if pair == 'text_image_to_text' else 'qwen2')
        sources, its_pair, resolved = planned(
            algorithm, model, write_rows(tmp_path / 'rows.jsonl', rows), template, pair
        )
        spec = load_spec(str(model), model_max_length=128)
        dataset = make_dataset(sources.training, its_pair, spec, resolved.algorithm, 'all_assistant')
        return [dataset[index] for index in range(len(dataset))]

    return examples


ROWS: dict[str, tuple[str, str, dict[str, Any], list[tuple[dict[str, Any], str]]]] = {
    'pairs': (
        'dpo',
        'Preference',
        GOOD,
        [
            ({'prompt': 'x', 'rejected': 'stone'}, "no column 'chosen' or 'better'"),
            ({**GOOD, 'chosen': None}, "column 'chosen' is null"),
            ({**GOOD, 'rejected': ''}, 'empty answer'),
            ({**GOOD, 'rejected': ' \n'}, 'empty answer'),
            ({**GOOD, 'rejected': 'salt sea'}, 'both answers are the same'),
            ({'chosen': [USER, REPLY], 'rejected': [{**USER, 'content': 'moon'}, OTHER]}, 'must have the same prompt'),
            ({'chosen': [USER, REPLY], 'rejected': [REPLY]}, 'is no conversation'),
            (
                {'chosen': [USER, REPLY, USER, REPLY], 'rejected': [USER, REPLY]},
                'the other goes on: an answer is missing',
            ),
            ({**GOOD, 'prompt': LONG}, 'raise model_cfgs.model_max_length'),
            ({**GOOD, 'prompt': LONG, 'chosen': LONG, 'rejected': 'x'}, 'raise model_cfgs.model_max_length'),
        ],
    ),
    'ratings': (
        'rm',
        'Rated',
        RATED,
        [
            ({**RATED, 'ratings': [1, 1]}, 'check_validation'),
            ({**RATED, 'ratings': [1]}, '2 answers and column'),
            ({**RATED, 'responses': ['sea', 'sea']}, 'both answers are the same'),
        ],
    ),
    'labels': (
        'kto',
        'Unpaired',
        LABELLED,
        [
            ({**LABELLED, 'label': 'good'}, "the row's label is 'good', not true or false"),
            ({**LABELLED, 'label': None}, "column 'label' is null"),
            ({'prompt': 'x', 'completion': 'y'}, "template option 'label'"),
            ({**LABELLED, 'completion': ''}, 'empty answer'),
            ({**LABELLED, 'prompt': LONG}, 'raise model_cfgs.model_max_length'),
        ],
    ),
    'pairs as good and bad answers': ('kto', 'Preference', GOOD, [({**GOOD, 'rejected': 'salt sea'}, 'are the same')]),
    'costs': (
        'cost_model',
        'PKUSafeRLHF_Cost',
        {**COST, **SAFETY},
        [
            (COST, "no column 'is_response_0_safe'"),
            ({**COST, **SAFETY, 'is_response_1_safe': None}, "column 'is_response_1_safe' is null"),
            ({**COST, **SAFETY, 'safer_response_id': -1}, 'check_validation'),
        ],
    ),
}


@pytest.mark.parametrize('name', ROWS)
def test_a_row_is_left_out_with_its_reason(opened: Opened, name: str) -> None:
    algorithm, template, good, bad = ROWS[name]
    first, *others, last = opened(algorithm, template, [good, *(row for row, _ in bad), good])
    assert isinstance(first, Example) and isinstance(last, Example)
    reasons = [other.reason if isinstance(other, Skipped) else 'used' for other in others]
    assert [text for (_, text), reason in zip(bad, reasons, strict=True) if text not in reason] == [], reasons


def test_media_must_be_the_same_on_both_sides_up_to_the_answers(opened: Opened) -> None:
    plain = {'role': 'user', 'content': 'sun'}
    rows = [
        {'chosen': [SEEN, REPLY], 'rejected': [SEEN, OTHER]},
        {'chosen': [SEEN, REPLY], 'rejected': [plain, OTHER]},
        {'chosen': [plain, REPLY], 'rejected': [SEEN, OTHER]},
        {'prompt': 'sun', 'chosen': 'sea', 'rejected': 'stone', 'image': 'lost.png'},
        {'chosen': [plain, REPLY, SEEN, REPLY], 'rejected': [plain, OTHER]},
    ]
    used, *others, later = opened('dpo', 'Preference', rows, 'text_image_to_text')
    assert isinstance(used, Example) and used.prompt.media_counts == {'image': 1}
    assert [answer.media_counts.get('image', 0) for answer in later.responses] == [1, 0]
    assert [other.reason.split(':')[-1].strip() for other in others[:2]] == ['both must have the same prompt'] * 2
    assert 'lost.png' in others[2].reason and 'does not exist' in others[2].reason


def test_both_answers_are_truncated_at_the_length_and_kept(opened: Opened) -> None:
    (example,) = opened('dpo', 'Preference', [{**GOOD, 'chosen': LONG}])
    assert len(example.prompt) + len(example.responses[0]) == 128 > len(example.prompt) + len(example.responses[1])


SETTINGS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], list[str]]] = {
    'a template without pairs': (
        'dpo', 'Alpaca', {'instruction': 'x', 'input': '', 'output': 'y'}, {},
        ["template 'Alpaca' has no format_preference_sample", 'Templates that have it', 'Preference', 'SPA_VL'],
    ),
    'a template without labels': (
        'kto', 'Alpaca', {'instruction': 'x', 'input': '', 'output': 'y'}, {},
        ["the row's label is None", 'as the template Unpaired does'],
    ),
    'pairs without safety': (
        'cost_model', 'Preference', GOOD, {},
        ["template 'Preference' does not tell is_better_safe and is_worse_safe", 'choose a template'],
    ),
    'a label column that is not there': (
        'kto', 'Unpaired', LABELLED, {'train_template_kwargs': '{label: lable}'},
        ["no column 'lable'", "Did you mean 'label'?"],
    ),
    'a label column with something else': (
        'kto', 'Unpaired', LABELLED, {'train_template_kwargs': '{label: prompt}'}, ["label is 'name a fish'"],
    ),
    'training of prompts': ('dpo', 'Preference', GOOD, {'train_on': 'all'}, ['data_cfgs.train_on', 'dpo compares']),
    'a stream of single answers': (
        'kto', 'Unpaired', LABELLED, {'streaming': True, 'max_steps': 2}, ['data_cfgs.streaming: False'],
    ),
    'a stream with a kept reference': (
        'dpo', 'Preference', GOOD, {'streaming': True, 'max_steps': 2, 'reference_cache_dir': 'kept'},
        ['train_cfgs.reference_cache_dir', 'data_cfgs.streaming: False'],
    ),
    'the best model without evaluation': (
        'dpo', 'Preference', GOOD, {'save_best': 'reward_accuracy'}, ['train_cfgs.save_best', 'eval'],
    ),
    'weights for fewer losses': (
        'dpo', 'Preference', GOOD, {'loss_type': '[sigmoid, ipo]', 'loss_weights': '[1.0]'},
        ['loss_weights has 1 entries for 2 losses'],
    ),
    'an unknown loss': ('dpo', 'Preference', GOOD, {'loss_type': 'sigmoidd'}, ['train_cfgs.loss_type', 'sigmoid_norm']),
    'a setting of another algorithm': ('dpo', 'Preference', GOOD, {'gamma': 1.0}, ['gamma', 'simpo']),
}  # fmt: skip


@pytest.mark.parametrize('name', SETTINGS)
def test_a_run_stops_before_weights_are_read(tiny: Callable[..., Path], tmp_path: Path, name: str) -> None:
    algorithm, template, row, settings, texts = SETTINGS[name]
    rows = write_rows(tmp_path / 'rows.jsonl', [row] * 4)
    with pytest.raises(AlignAnythingError) as caught:
        planned(algorithm, tiny('qwen2'), rows, template, **settings)
    assert isinstance(caught.value, (DataError, SettingsError))
    assert [text for text in texts if text not in str(caught.value)] == [], str(caught.value)


def test_a_run_counts_what_it_leaves_out(tiny: Callable[..., Path], tmp_path: Path) -> None:
    its_pair, algorithm = find_run('text_to_text', 'dpo')
    equal, empty = {**GOOD, 'rejected': GOOD['chosen']}, {**GOOD, 'rejected': ''}
    rows = write_rows(tmp_path / 'rows.jsonl', [GOOD, equal, GOOD, empty])
    argv = sft(tmp_path / 'run', tiny('qwen2'), rows, template='Preference', max_skipped_ratio=0.5)
    ended = run(argv, 1, its_pair, algorithm=algorithm)
    assert ended[0].code == 0, ended[0].output
    (*_, record) = lines(tmp_path / 'run' / 'metrics.jsonl')
    assert record['train/skipped'] == 2
    reasons = {item['source']: item['reason'] for item in lines(tmp_path / 'run' / 'skipped_samples.jsonl')}
    assert reasons.keys() == {f'{rows}:2', f'{rows}:4'} and 'the same' in reasons[f'{rows}:2']


@pytest.mark.parametrize(
    ('work', 'algorithm', 'setting'),
    [
        (train, 'dpo', 'data_cfgs.sample_cache_dir'),
        (train, 'dpo', 'model_cfgs.feature_cache_dir'),
        (train, 'dpo', 'train_cfgs.reference_cache_dir'),
        (score, 'rm_score', 'data_cfgs.sample_cache_dir'),
    ],
)
def test_a_file_where_a_cache_should_be_is_found_before_anything_is_read(
    work: Callable[..., None], algorithm: str, setting: str, tmp_path: Path
) -> None:
    (tmp_path / 'file').touch()
    pair, kind = find_run('text_to_text', algorithm)
    needed = ['--model_name_or_path', 'm', '--train_datasets', 'd', '--train_template', 't']
    argv = [*needed, '--output_dir', str(tmp_path / 'run'), f'--{setting}', str(tmp_path / 'file' / 'kept')]
    with pytest.raises(SettingsError, match=f'^- {setting}: .*file/kept cannot be written to'):
        work(pair, settings_of(pair, kind, argv, {}))
