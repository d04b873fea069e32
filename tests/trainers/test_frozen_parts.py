"""Runs in which only a projector or a tower trains, on rows with and without media, for every algorithm."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from align_anything.cli.leaves import find_run
from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import in_tiers
from tests.trainers.runs import IMAGE, TEXT, lines, run, sft, weights, write_rows

Tiny = Callable[..., Path]
# Without decay, which moves what has no gradient.
ONLY_PROJECTOR = {
    'freeze_language_model': True,
    'freeze_vision_tower': True,
    'freeze_mm_proj': False,
    'weight_decay': 0,
}
REWARD = 'def varied(completions):\n    return [float(sum(map(ord, item.response)) % 97) for item in completions]\n'
ONLINE = {
    'num_generations': 2,
    'per_device_prompt_batch_size': 2,
    'per_device_train_batch_size': 2,
    'gradient_accumulation_steps': 3,
    'max_new_tokens': 4,
    'max_steps': 2,
}
OFFLINE = {'per_device_train_batch_size': 1, 'gradient_accumulation_steps': 3, 'max_steps': 3}
ANSWERS = {'train_template': 'Preference'}
# The settings of each algorithm; its other ones preset what those here have.
ALGORITHMS: dict[str, dict[str, Any]] = {
    'sft': OFFLINE,
    **{name: {**OFFLINE, **ANSWERS} for name in ('dpo', 'kto', 'orpo', 'simpo', 'cpo', 'rm')},
    **dict.fromkeys(('grpo', 'rloo', 'reinforce_plus_plus', 'ppo', 'online_dpo'), ONLINE),
}


def row(number: int, picture: bool) -> dict[str, Any]:
    """A row for the templates Instruction and Preference."""
    mark = '<image> ' if picture else ''
    return {
        'instruction': f'{mark}{number} what is it?',
        'prompt': f'{mark}{number} what is it?',
        'output': f'red {number}',
        'chosen': f'red {number}',
        'rejected': f'a blue tree {number}',
        'images': 'red.png' if picture else None,
    }


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """`rows(True, False)` is a file with a row that holds a picture and one that does not."""
    Image.new('RGB', (56, 56), 'red').save(tmp_path / 'red.png')
    return lambda *pictures: write_rows(
        tmp_path / 'rows.jsonl', [row(number, picture) for number, picture in enumerate(pictures)]
    )


def trained(argv: list[str], model: Path, output: Path, name: str = 'sft') -> None:
    """The run ends well, having moved the projector and nothing else."""
    _, algorithm = find_run('text_image_to_text', name)
    (ended,) = run(argv, pair=IMAGE, algorithm=algorithm)
    assert ended.code == 0, ended.output
    before, after = weights(model), weights(output / 'slice_end')
    moved = {key for key in before if key in after and not torch.equal(before[key], after[key])}
    assert moved and all('multi_modal_projector' in key for key in moved)


def asked(output: Path, model: Path, data: Path, **settings: Any) -> list[str]:
    return sft(output, model, data, '--train_template_kwargs.images=images', **{**ONLY_PROJECTOR, **settings})


@pytest.mark.parametrize(
    ('pictures', 'stage', 'checkpointing'),
    [
        # No picture in a batch of one; then pictures in every row, and a last step of two rows and a filler.
        ((True, False), 'z2', False),
        ((True,) * 8, 'z0', False),
        pytest.param((True,) * 8, 'z2', True, marks=pytest.mark.extended),
        pytest.param((True, False), 'z3', True, marks=pytest.mark.extended),
    ],
)
def test_the_first_stage_of_a_picture_model_trains(
    pictures: tuple[bool, ...], stage: str, checkpointing: bool, tiny: Tiny, rows: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {'ds_cfgs': f'ds_{stage}_config.json', 'gradient_checkpointing': checkpointing}
    settings |= {'per_device_train_batch_size': 1, 'gradient_accumulation_steps': 3 if len(pictures) > 2 else 1}
    output = tmp_path / 'out'
    trained(asked(output, tiny('llava'), rows(*pictures), **settings), tiny('llava'), output)
    losses = [record['train/loss'] for record in lines(output / 'metrics.jsonl')]
    assert len(losses) == (3 if len(pictures) > 2 else 2) and all(loss > 0 for loss in losses)


@pytest.mark.parametrize(
    ('name', 'stage'), in_tiers(zip(ALGORITHMS, cycle(('z0', 'z2')), strict=False), [('grpo', 'z2')])
)
def test_every_algorithm_trains_a_projector_alone(
    name: str, stage: str, tiny: Tiny, rows: Callable[..., Path], tmp_path: Path
) -> None:
    output = tmp_path / 'out'
    settings = {'ds_cfgs': f'ds_{stage}_config.json', **ALGORITHMS[name]}
    if 'num_generations' in settings:
        (tmp_path / 'rewards.py').write_text(REWARD)
        settings['reward_functions'] = f'[{tmp_path}/rewards.py:varied]'
    data = rows(True, False, False, True, False)
    argv = asked(output, tiny('llava'), data, **settings)
    if name == 'rm':
        # Beside the head, which always trains.
        _, algorithm = find_run('text_image_to_text', name)
        (ended,) = run(argv, pair=IMAGE, algorithm=algorithm)
        assert ended.code == 0, ended.output
        return
    trained(argv, tiny('llava'), output, name)


def test_what_no_row_can_reach_is_refused_before_weights_load(
    tiny: Tiny, rows: Callable[..., Path], tmp_path: Path
) -> None:
    """Of a model with pictures, trained on text: towers and adapters of towers get no gradient ever."""
    data = write_rows(tmp_path / 'texts.jsonl', [row(number, False) for number in range(4)])
    for more in ('--dry_run',), ():
        (ended,) = run(sft(tmp_path / 'out', tiny('llava'), data, *more, freeze_language_model=True), pair=TEXT)
        assert ended.code == 2, ended.output
        assert 'all that trains is mm_proj and vision_tower, which rows of text_to_text never reach' in ended.output
        assert 'Loading weights' not in ended.output


@pytest.mark.parametrize(
    ('pair', 'family', 'key'),
    [
        ('text_to_text', 'llama', 'freeze_vision_tower'),
        ('text_to_text', 'llama', 'freeze_mm_proj'),
        ('text_image_to_text', 'llava', 'freeze_audio_tower'),
        ('any_to_text', 'qwen2_audio', 'freeze_vision_tower'),
    ],
)
@pytest.mark.parametrize('way', ['argument', 'variable', 'file'])
def test_freezing_what_the_model_has_not_is_told(
    pair: str, family: str, key: str, way: str, tiny: Tiny, rows: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Refused where somebody is there to correct it, told of a file, which may be written for several models."""
    data, file = write_rows(tmp_path / 'texts.jsonl', [row(number, False) for number in range(4)]), tmp_path / 'a.yaml'
    file.write_text(f'train_cfgs:\n  {key}: True\n')
    if way == 'variable':
        monkeypatch.setenv(f'ALIGN_ANYTHING__TRAIN_CFGS__{key.upper()}', 'True')
    more = {'argument': [f'--{key}', 'True'], 'variable': [], 'file': ['--config', str(file)]}[way]
    argv = [*sft(tmp_path / 'out', tiny(family), data, '--dry_run'), *more]
    (ended,) = run(argv, pair=PAIRS[pair])
    assert ended.code == (0 if way == 'file' else 2), ended.output
    component = key.removeprefix('freeze_')
    assert f'has no {component}, only ' in ' '.join(ended.output.split()), ended.output
    assert 'it is left out' in ' '.join(ended.output.split()) or way != 'file'


def test_what_a_pair_freezes_needs_no_word(tiny: Tiny, rows: Callable[..., Path], tmp_path: Path) -> None:
    """`any_to_text` freezes both towers, of models that have one; and False asks for nothing."""
    data = write_rows(tmp_path / 'texts.jsonl', [row(number, False) for number in range(4)])
    argv = sft(tmp_path / 'out', tiny('qwen2_audio'), data, '--dry_run', freeze_vision_tower=False)
    (ended,) = run(argv, pair=PAIRS['any_to_text'])
    assert ended.code == 0 and 'has no' not in ended.output, ended.output
    (ended,) = run(sft(tmp_path / 'out', tiny('llava'), data, '--dry_run'), pair=PAIRS['any_to_text'])
    assert ended.code == 0 and 'has no' not in ended.output, ended.output
