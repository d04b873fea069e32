"""Runs that compose their model, and the stages in which composed models are trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.cli.leaves import find_run
from align_anything.cli.merging import merge_adapter
from align_anything.configs.resolve import Resolved
from align_anything.core.errors import SettingsError
from align_anything.models.any_model import AnyModel
from align_anything.models.composed.register import register
from align_anything.testing.tiny.encoders import build_encoder
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from tests.harness.once import once
from tests.harness.pairwise import first_of, in_tiers
from tests.invariants.runs import zero_file
from tests.learning.lessons import colours, pitches
from tests.learning.preferences import pair, sights_and_sounds
from tests.learning.tasks import number_questions, write_rows
from tests.trainers.runs import run, sft, succeed, weights

PAIR = PAIRS['any_to_text']
PROJECTOR = 'model.multi_modal_projector.'


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, audio, and text alone."""
    folder = tmp_path_factory.mktemp('rows')
    asked = [*colours(folder, 'train', 8), *pitches(folder, 'train', 6), *number_questions(1)[:6]]
    return write_rows(folder / 'rows.json', asked)


@pytest.fixture(scope='session')
def made_of(tiny: Callable[..., Path], shared_cache: Path) -> dict[str, Any]:
    """The settings of a small composed model."""

    def part(name: str) -> Path:
        return once(shared_cache, f'part-{name}', lambda folder: build_encoder(name, folder))

    return {
        'compose.language_model': tiny('llama'),
        'compose.image.encoder': part('siglip'),
        'compose.audio.encoder': part('hubert'),
        'compose.audio.projector': 'transformer',
        'compose.audio.num_tokens': 4,
        'compose.audio.num_heads': 2,
    }


def composing(output: Path, rows: Path, **settings: Any) -> list[str]:
    """The command line of a run without a checkpoint to start from."""
    argv = sft(output, Path('none'), rows, template='Messages', model_max_length=256, **settings)
    place = argv.index('--model_name_or_path')
    return argv[:place] + argv[place + 2 :]


def settled(**settings: Any) -> Resolved:
    values = {
        'model_name_or_path': 'm',
        'train_datasets': 'd',
        'train_template': 'Messages',
        'output_dir': 'o',
        **settings,
    }
    argv = [word for key, value in values.items() for word in (f'--{key}', str(value))]
    return settings_of(PAIR, SFT, argv, {})


def test_the_stage_of_projection_moves_the_projectors_alone(
    tmp_path: Path, rows: Path, made_of: dict[str, Any]
) -> None:
    told = succeed(composing(tmp_path / 'run', rows, stage='projection', max_steps=3, **made_of), ranks=2, pair=PAIR)
    assert 'composed model (composed)' in told
    (start,) = (tmp_path / 'run').glob('composed-????????')
    before, after = weights(start), weights(tmp_path / 'run' / 'slice_end')
    assert before.keys() == after.keys()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved and all(name.startswith(PROJECTOR) for name in moved)
    assert {name.split('.')[2] for name in moved} == {'image', 'audio'}
    # What the run writes down starts it again, without composing.
    assert str(start) in (tmp_path / 'run' / 'settings.yaml').read_text()
    register()
    assert AnyModel.from_pretrained(tmp_path / 'run' / 'slice_end').can_generate()


def test_joint_training_with_adapters_trains_the_projectors_in_full_and_resumes(
    tmp_path: Path, rows: Path, made_of: dict[str, Any]
) -> None:
    how = {
        'stage': 'joint',
        'use_lora': True,
        'lora_dropout': 0.0,
        'save_total_limit': 3,
        'save_interval': 2,
        **made_of,
    }
    succeed(composing(tmp_path / 'whole', rows, max_steps=4, **how), pair=PAIR)
    adapter = weights(tmp_path / 'whole' / 'slice_end')
    kept = [name for name in adapter if 'multi_modal_projector' in name and 'lora' not in name]
    assert any('.image.' in name for name in kept) and any('.audio.queries' in name for name in kept)
    assert any('language_model' in name and 'lora_A' in name for name in adapter)
    assert not [name for name in adapter if 'tower' in name]
    # A second run that goes on from the middle ends with the same weights, those of the projectors too.
    (tmp_path / 'whole' / 'slice_end').rename(tmp_path / 'kept')
    assert (tmp_path / 'whole' / 'slice_2').is_dir() and not (tmp_path / 'whole' / 'slice_4').exists()
    succeed(composing(tmp_path / 'whole', rows, max_steps=4, resume='auto', **how), pair=PAIR)
    again = weights(tmp_path / 'whole' / 'slice_end')
    assert again.keys() == adapter.keys() and all(torch.equal(value, again[name]) for name, value in adapter.items())
    # It can be trained on, and merged.
    merge_adapter(tmp_path / 'whole' / 'slice_end', tmp_path / 'merged')
    merged = weights(tmp_path / 'merged')
    for name in kept:
        plain = name.removeprefix('base_model.model.')
        assert torch.equal(merged[plain], adapter[name]), plain


def test_a_stage_stands_for_settings_that_may_be_given_to_differ() -> None:
    first = settled(stage='projection').cfgs.train_cfgs
    frozen = first.freeze_vision_tower, first.freeze_audio_tower, first.freeze_mm_proj, first.freeze_language_model
    assert frozen == (True, True, False, True) and first.learning_rate == 1e-3
    second = settled(stage='joint')
    train = second.cfgs.train_cfgs
    assert (train.freeze_language_model, train.freeze_vision_tower, train.learning_rate) == (False, True, 2e-5)
    assert second.cfgs.lora_cfgs.modules_to_save is None and not second.given('train_cfgs.freeze_vision_tower')
    adapters = settled(stage='joint', use_lora=True).cfgs
    assert adapters.lora_cfgs.modules_to_save == ['mm_proj'] and adapters.train_cfgs.lr_groups == {'mm_proj': 2e-5}
    assert adapters.train_cfgs.learning_rate == pytest.approx(2e-4)
    other = settled(stage='projection', freeze_vision_tower=False, learning_rate=5e-4).cfgs.train_cfgs
    assert (other.freeze_vision_tower, other.learning_rate, other.freeze_language_model) == (False, 5e-4, True)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'stage': 'projection', 'use_lora': True}, 'take the stage joint'),
        ({'stage': 'projecton'}, "Did you mean 'projection'?"),
        ({'compose': '{language_model: l, image: c}'}, 'model_name_or_path names one'),
        ({'compose.langauge_model': 'l'}, 'model_cfgs.compose.langauge_model: there is no such setting. Did you mean'),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_read(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        settled(**settings)
    assert words in str(error.value)


def test_parts_that_are_missing_end_a_run_before_it_writes(tmp_path: Path, rows: Path) -> None:
    (ended,) = run(
        composing(tmp_path / 'run', rows, **{'compose.language_model': tmp_path / 'gone', 'compose.image': 'x/y'}),
        pair=PAIR,
    )
    assert ended.code == 2 and 'does not exist' in ended.output
    assert not [*(tmp_path / 'run').glob('composed-????????')]


def test_a_file_of_settings_composes_too(tmp_path: Path, rows: Path, made_of: dict[str, Any]) -> None:
    file = tmp_path / 'run.yaml'
    image = {'encoder': str(made_of['compose.image.encoder']), 'projector': 'expand', 'perception_tokens': 3}
    made = {'language_model': str(made_of['compose.language_model']), 'image': image}
    file.write_text(json.dumps({'model_cfgs': {'compose': made}}))
    told = succeed([*composing(tmp_path / 'run', rows, max_steps=1), '--config', str(file)], pair=PAIR)
    assert 'this model takes no audio' in told or 'skipped' in told
    (start,) = (tmp_path / 'run').glob('composed-????????')
    media = json.loads((start / 'config.json').read_text())['media']
    assert media['image']['projector'] == {'type': 'expand', 'num_tokens': 3}


# One of the other kinds of encoders and projectors each; tests/invariants has CLIP, Wav2Vec2 and frames of videos.
STAGED = {
    'wavlm-dinov2': {'compose.projector': 'transformer', 'compose.image.num_heads': 2, 'compose.audio.num_heads': 2},
    'whisper-siglip': {'compose.projector': 'linear'},
    'clap-vit': {'compose.projector': 'expand'},
    'hubert-dinov2_with_registers': {'compose.projector': 'mlp', 'compose.image.select': 'cls'},
}


# The second stage of other models is in tests/invariants; what is composed of modules of several kinds is hardest for
# the third.
@pytest.mark.parametrize(('parts', 'stage'), in_tiers(product(STAGED, (2, 3)), [('wavlm-dinov2', 3)]))
def test_every_stage_of_zero_ends_in_the_same_weights(
    parts: str, stage: int, tmp_path: Path, rows: Path, tiny: Callable[..., Path]
) -> None:
    """Two ranks, of which one may have text alone; encoders, projectors and language model train."""
    audio, image = parts.split('-')
    settings = {
        'compose.language_model': tiny('qwen3', hidden=32, layers=1),
        'compose.image.encoder': build_encoder(image, tmp_path / image),
        'compose.audio.encoder': build_encoder(audio, tmp_path / audio),
        **STAGED[parts],
    }
    found = {}
    for used in (0, stage):
        output = tmp_path / f'zero{used}'
        argv = composing(
            output,
            rows,
            max_steps=3,
            adam_epsilon=1e-3,
            ds_cfgs=zero_file(tmp_path, used),
            freeze_vision_tower=False,
            freeze_audio_tower=False,
            per_device_train_batch_size=1,
            **settings,
        )
        succeed(argv, ranks=2, pair=PAIR)
        found[used] = weights(output / 'slice_end')
        (start,) = output.glob('composed-????????')
        before = weights(start)
        moved = {name for name, value in before.items() if not torch.equal(value, found[used][name])}
        assert moved >= {name for name in before if name.startswith((PROJECTOR, 'model.language_model.layers'))}
        for tower in ('model.vision_tower.', 'model.audio_tower.'):
            assert len([name for name in moved if name.startswith(tower)]) > 10
    for name, value in found[0].items():
        if value.is_floating_point():
            torch.testing.assert_close(found[stage][name], value, atol=2e-5, rtol=0, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize('algorithm', first_of(['dpo', 'rm', 'kto', 'simpo', 'ppo'], 'dpo'))
def test_every_kind_of_algorithm_trains_it(algorithm: str, tmp_path: Path, tiny: Callable[..., Path]) -> None:
    """GRPO does in tests/trainers/test_online.py; whatever trains a policy, a score head or a critic asks no more."""
    (tmp_path / 'rows').mkdir()
    file = tmp_path / 'rows' / 'rows.jsonl'
    asked = sights_and_sounds(tmp_path / 'rows', 'train', 12)
    template = 'Messages' if algorithm == 'ppo' else 'Preference'
    file.write_text(''.join(json.dumps(pair(question)) + '\n' for question in asked))
    if algorithm == 'ppo':
        file = write_rows(file.with_suffix('.json'), asked)
    settings: dict[str, Any] = {'stage': 'joint', 'max_steps': 2, 'model_max_length': 512}
    if algorithm == 'ppo':
        settings |= {'reward_functions': '[length]', 'reward_kwargs': '{length: {max_length: 8, cache: 8}}'}
        settings |= {'max_new_tokens': 6, 'per_device_prompt_batch_size': 2}
    if algorithm == 'kto':
        settings['per_device_train_batch_size'] = 4
    its_pair, kind = find_run('any_to_text', algorithm)
    out = tmp_path / 'out'
    succeed(sft(out, tiny('composed'), file, template=template, **settings), ranks=2, pair=its_pair, algorithm=kind)
    before, after = weights(tiny('composed')), weights(out / 'slice_end')
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split('.')[1] for name in moved if name.startswith('model.')} == {
        'language_model',
        'multi_modal_projector',
    }
    assert ('score.weight' in after) is (algorithm == 'rm')
