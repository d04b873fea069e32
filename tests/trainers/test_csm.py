"""Runs of CSM: codes beside the tokens of speech, learned by a depth decoder in SFT and left alone by what follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.sft import SFT
from align_anything.cli.leaves import find_run
from align_anything.core.errors import SampleError
from align_anything.core.types import CodedMedia
from align_anything.datasets.preference import PreferenceTask
from align_anything.models.codecs.base import codec_rules
from align_anything.models.frames import FURTHER
from align_anything.models.pretrained_model import load_spec
from align_anything.models.structure import MEDIA_CODEC
from align_anything.testing.tiny.csm import BOOKS, RATE
from align_anything.trainers.pairs import PAIRS
from tests.models.samples import user
from tests.trainers.runs import lines, run, sft, succeed, weights, write_rows

Tiny = Callable[..., Path]
PAIR = PAIRS['text_to_audio']
PITCHES = (300, 440, 600, 900, 1300)
REWARDS = """
def level(completions):
    sounds = [part for item in completions for part in item.message['content'] if part['type'] == 'audio']
    assert len(sounds) == len(completions) and all(part['codes'].codes.shape[0] == BOOKS for part in sounds)
    return [float(abs(part['audio'].samples).mean()) for part in sounds]
""".replace('BOOKS', str(BOOKS))


def tone(pitch: float, seconds: float = 0.4) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def spoken(folder: Path, number: int = 5) -> Path:
    """Rows of tones of unequal length, with another one that is worse."""
    import soundfile

    rows = []
    for at, pitch in enumerate(PITCHES[:number]):
        for name, other in ((f'{at}.wav', pitch), (f'{at}-other.wav', 1.5 * pitch)):
            soundfile.write(folder / name, tone(other, 0.2 + 0.1 * at), RATE, subtype='FLOAT')
        rows.append({'text': f'sing {pitch}', 'audio': f'{at}.wav', 'rejected': f'{at}-other.wav'})
    return write_rows(folder / 'rows.jsonl', rows)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize('stage', [*(pytest.param(stage, marks=pytest.mark.extended) for stage in (0, 2)), 3])
def test_two_ranks_of_which_one_has_no_sound_learn_what_one_learns(stage: int, tiny: Tiny, tmp_path: Path) -> None:
    """Three rows on two ranks: in the second step one of them has none."""
    rows, found = spoken(tmp_path, 3), {}
    for ranks in (1, 2):
        settings = {'per_device_train_batch_size': 2 // ranks, 'layout': 'padded' if ranks == 1 else 'packed'}
        settings['ds_cfgs'] = f'ds_z{stage if ranks == 2 else 0}_config.json'
        output = tmp_path / str(ranks)
        succeed(sft(output, tiny('csm'), rows, template='TTS', learning_rate=1e-3, **settings), ranks, PAIR)
        records = [record for record in lines(output / 'metrics.jsonl') if 'train/depth_loss' in record]
        assert len(records) == 2
        found[ranks] = records, weights(output / 'slice_end')
    for one, two in zip(found[1][0], found[2][0], strict=True):
        for name in ('loss', 'depth_loss', 'grad_norm'):
            assert two[f'train/{name}'] == pytest.approx(one[f'train/{name}'], rel=1e-4), name
    for name, tensor in found[1][1].items():
        torch.testing.assert_close(found[2][1][name], tensor, atol=2e-5, rtol=1e-3, msg=name)


def test_all_but_the_codec_learns_in_sft(tiny: Tiny, tmp_path: Path) -> None:
    rows, spec = spoken(tmp_path), load_spec(tiny('csm'))
    evaluated = {'eval_datasets': rows, 'eval_template': 'TTS', 'eval_strategy': 'epoch', 'save_best': 'depth_loss'}
    settings: dict[str, Any] = {'ds_cfgs': 'ds_z2_config.json', 'depth_loss_coef': 0.5, **evaluated}
    succeed(sft(tmp_path / 'out', tiny('csm'), rows, template='TTS', **settings), 1, PAIR)
    (record, *_) = [record for record in lines(tmp_path / 'out' / 'metrics.jsonl') if 'train/depth_loss' in record]
    assert record['train/loss'] == pytest.approx(record['train/loss/audio']) and record['train/depth_loss'] > 1
    assert any('eval/depth_loss' in record for record in lines(tmp_path / 'out' / 'metrics.jsonl'))
    before, after = weights(tiny('csm')), weights(tmp_path / 'out' / 'slice_end')
    # transformers ties the two embeddings no more, so that both are written.
    twin = {'backbone_model.embed_tokens.embed_audio_tokens.weight'}
    assert after.keys() - before.keys() == twin
    codec = {name for name in before if spec.component_of(name) == MEDIA_CODEC}
    assert codec and moved(before, after) == before.keys() - codec
    assert codec_rules(tmp_path / 'out' / 'slice_end').fingerprint == codec_rules(tiny('csm')).fingerprint


@pytest.mark.parametrize(
    ('name', 'stage', 'ranks'),
    [
        ('dpo', 2, 1),
        ('grpo', 3, 1),
        pytest.param('grpo', 3, 2, marks=pytest.mark.extended),
        pytest.param('rloo', 2, 1, marks=pytest.mark.extended),
        pytest.param('kto', 3, 2, marks=pytest.mark.extended),
        pytest.param('ppo', 2, 1, marks=pytest.mark.extended),
    ],
)
def test_preferences_and_rewards_leave_the_depth_decoder_alone(
    name: str, stage: int, ranks: int, tiny: Tiny, tmp_path: Path
) -> None:
    rows, spec = spoken(tmp_path), load_spec(tiny('csm'))
    settings: dict[str, Any] = {'ds_cfgs': f'ds_z{stage}_config.json', 'max_steps': 2}
    if name in ('dpo', 'kto'):
        pairs = '{answers: audio, prompt: text, chosen: audio, rejected: rejected}'
        settings |= {'template': 'Preference', 'train_template_kwargs': pairs}
    else:
        (tmp_path / 'rewards.py').write_text(REWARDS)
        rows = write_rows(tmp_path / 'prompts.jsonl', [{'prompt': f'sing {pitch}'} for pitch in PITCHES])
        settings |= {
            'template': 'Prompts',
            'num_generations': 2,
            'per_device_prompt_batch_size': 1,
            'max_new_tokens': 12,
            'emit_size': '{audio: 8}',
            'reward_functions': f'[{tmp_path}/rewards.py:level]',
        }
    output, algorithm = tmp_path / 'out', find_run('text_to_audio', name)[1]
    told = succeed(sft(output, tiny('csm'), rows, **settings), ranks, PAIR, algorithm=algorithm)
    assert 'the 3 behind the first one of each frame are read and not scored' in told
    records = [record for record in lines(output / 'metrics.jsonl') if 'train/grad_norm' in record]
    assert records and records[0]['train/grad_norm'] > 0
    assert not any('train/depth_loss' in record for record in records)
    if name not in ('dpo', 'kto'):
        assert all(record['train/rollout_drift'] < 1e-5 for record in records)
        assert records[0].get('train/ratio', 1.0) == pytest.approx(1, abs=1e-5)
    before, after = weights(tiny('csm')), weights(output / 'slice_end')
    assert {spec.component_of(key) for key in moved(before, after)} == {'language_model'}


def test_adapters_are_saved_and_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    rows = spoken(tmp_path)
    settings: dict[str, Any] = {'template': 'TTS', 'use_lora': True, 'lora_r': 4}
    succeed(sft(tmp_path / 'one', tiny('csm'), rows, target_modules='all-linear', **settings), 1, PAIR)
    saved = weights(tmp_path / 'one' / 'slice_end')
    assert any('depth_decoder' in name for name in saved) and not any('codec_model' in name for name in saved)


@pytest.mark.extended
def test_adapters_of_the_backbone_are_rewarded(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / 'rewards.py').write_text(REWARDS)
    rows = write_rows(tmp_path / 'prompts.jsonl', [{'prompt': f'sing {pitch}'} for pitch in PITCHES])
    settings: dict[str, Any] = {
        'template': 'Prompts',
        'num_generations': 2,
        'per_device_prompt_batch_size': 1,
        'max_new_tokens': 12,
        'emit_size': '{audio: 8}',
        'reward_functions': f'[{tmp_path}/rewards.py:level]',
        'use_lora': True,
        'max_steps': 2,
    }
    output, algorithm = tmp_path / 'out', find_run('text_to_audio', 'grpo')[1]
    succeed(sft(output, tiny('csm'), rows, **settings), 1, PAIR, algorithm=algorithm)
    records = [record for record in lines(output / 'metrics.jsonl') if 'train/grad_norm' in record]
    assert len(records) == 2 and all(record['train/rollout_drift'] < 1e-5 for record in records)
    saved = weights(output / 'slice_end')
    assert saved and all('backbone_model.layers' in name for name in saved)


def test_answers_that_differ_in_further_codes_alone_are_a_pair(tiny: Tiny) -> None:
    spec = load_spec(tiny('csm'))
    task = PreferenceTask(spec.encode_group, 'all_assistant', ())
    codes = torch.arange(4 * BOOKS).view(BOOKS, 4)
    other = codes.clone()
    other[-1, -1] += 1

    def answer(made: Tensor) -> list[dict[str, Any]]:
        part = {'type': 'audio', 'audio': CodedMedia('audio', made)}
        return [user('sing'), {'role': 'assistant', 'content': [part]}]

    chosen, rejected = task.encode([answer(codes), answer(other)]).responses
    assert torch.equal(chosen.ids, rejected.ids)
    assert not torch.equal(chosen.token_tensors[FURTHER], rejected.token_tensors[FURTHER])
    with pytest.raises(SampleError, match='is equal'):
        task.encode([answer(codes), answer(codes.clone())])


def test_a_model_of_tokens_alone_has_no_depth_loss(emitting: Callable[..., Path], tmp_path: Path) -> None:
    argv = sft(tmp_path / 'out', emitting('singing'), spoken(tmp_path), template='TTS', depth_loss_coef=0.5)
    (ended,) = run(argv, 1, PAIR)
    assert ended.code == 2 and 'have no codes beside their tokens' in ' '.join(ended.output.split())


@pytest.mark.parametrize(
    ('algorithm', 'changes', 'said'),
    [
        (SFT, {'train_on': 'all'}, 'writes no text'),
        ('dpo', {'use_lora': True, 'target_modules': 'all-linear'}, 'would get no gradient'),
        ('dpo', {'freeze_generation': True, 'unfreeze_patterns': '[depth_decoder]'}, 'would get no gradient'),
        ('grpo', {'guidance_scale': 2.0}, 'would not follow'),
    ],
)
def test_what_cannot_be_is_said_before_weights_load(
    algorithm: type[Algorithm] | str, changes: dict[str, Any], said: str, tiny: Tiny, tmp_path: Path
) -> None:
    rows = spoken(tmp_path)
    settings: dict[str, Any] = {'template': 'TTS', **changes}
    if algorithm == 'dpo':
        pairs = '{answers: audio, prompt: text, chosen: audio, rejected: rejected}'
        settings = {'template': 'Preference', 'train_template_kwargs': pairs, **changes}
    if algorithm == 'grpo':
        (tmp_path / 'rewards.py').write_text(REWARDS)
        rows = write_rows(tmp_path / 'prompts.jsonl', [{'prompt': f'sing {pitch}'} for pitch in PITCHES])
        settings = {
            'template': 'Prompts',
            'max_new_tokens': 12,
            'reward_functions': f'[{tmp_path}/rewards.py:level]',
            **changes,
        }
    found = algorithm if algorithm is SFT else find_run('text_to_audio', algorithm)[1]
    (ended,) = run(sft(tmp_path / 'out', tiny('csm'), rows, **settings), 1, PAIR, algorithm=found)
    assert ended.code and said in ' '.join(ended.output.split())
