"""Whole runs of models that draw and sing: every algorithm, every way to cut a step, killed ones, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from align_anything.algorithms.base import Algorithm
from align_anything.cli.leaves import find_run
from align_anything.models.pretrained_model import load_spec
from align_anything.testing.emitting import SIZE, melody, write_digit_rows
from align_anything.trainers.loops.offline import OfflineLoop
from align_anything.trainers.loops.online import OnlineLoop
from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import first_of
from tests.trainers.runs import die, lines, run, sft, succeed, text_rows, weights, write_rows
from tests.trainers.test_scoring import with_head

Emitting = Callable[..., Path]
DRAWING, SINGING, MIXED = (PAIRS[name] for name in ('text_to_image', 'text_to_audio', 'text_image_to_text_image'))
SHOWN = {'train_template_kwargs': '{answers: image, prompt: question, chosen: picture}'}
PREFERENCES = {'template': 'Preference', **SHOWN}
HOW: dict[str, dict[str, Any]] = {
    'sft': {'template': 'Messages', 'train_template_kwargs': '{images: ""}'},
    **dict.fromkeys('dpo orpo simpo cpo rm'.split(), PREFERENCES),
    'cost_model': {**PREFERENCES, 'template': 'safe.py:Judged'},
    'kto': {
        'template': 'Preference',
        'train_template_kwargs': '{answers: image, prompt: question, chosen: picture}',
        'per_device_train_batch_size': 4,
    },
}
ADAPTER = {'use_lora': True, 'modules_to_save': '[embed_tokens, lm_head]'}
ONLINE = 'grpo rloo reinforce_plus_plus online_dpo ppo saferlhf'.split()
FIRST = 'sft dpo rm grpo ppo'.split()
SAFE = """
from align_anything.datasets.formatters.preference import Preference
from align_anything.datasets.template_registry import register_template

@register_template('Judged')
class Judged(Preference):
    def format_preference_sample(self, raw_sample):
        better, worse, meta = super().format_preference_sample(raw_sample)
        return better, worse, {**meta, 'is_better_safe': True, 'is_worse_safe': False}
"""
REWARDS = """
import numpy

def dark(completions):
    pictures = [part['image'] for item in completions for part in item.message['content'] if part['type'] == 'image']
    assert len(pictures) == len(completions) and all(picture.size == (8, 8) for picture in pictures)
    return [1 - float(numpy.asarray(picture).mean()) / 255 for picture in pictures]

def heard(completions):
    sounds = [part['audio'] for item in completions for part in item.message['content'] if part['type'] == 'audio']
    return [float(len(sounds))] * len(completions)

def pictures(completions):
    return [sum(part['type'] == 'image' for part in item.message['content']) for item in completions]
"""


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight digits to draw, each beside another one."""
    folder = tmp_path_factory.mktemp('digits')
    (folder / 'rewards.py').write_text(REWARDS)
    (folder / 'safe.py').write_text(SAFE)
    return write_digit_rows(folder, 8)


def named(name: str) -> type[Algorithm]:
    return find_run('text_to_image', name)[1]


def online(rows: Path, **changes: Any) -> dict[str, Any]:
    return {
        'template': 'Messages',
        'num_generations': 2,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'max_new_tokens': 20,
        'reward_functions': f'[{rows.parent}/rewards.py:dark]',
        'max_steps': 2,
        'log_completions': 1,
        **changes,
    }


@pytest.mark.parametrize('name', first_of([*HOW, *ONLINE], *FIRST))
def test_every_algorithm_trains_a_model_that_draws(name: str, emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    how = {key: str(value).replace('safe.py', f'{rows.parent}/safe.py') for key, value in HOW.get(name, {}).items()}
    how = how or online(rows)
    if name == 'saferlhf':
        how |= {'cost_model_name_or_path': with_head(emitting('drawing'), tmp_path / 'judge')}
    succeed(sft(tmp_path / 'run', emitting('drawing'), rows, **how), pair=DRAWING, algorithm=named(name))
    losses = [record for record in lines(tmp_path / 'run' / 'metrics.jsonl') if 'train/grad_norm' in record]
    assert losses and all(record['train/grad_norm'] > 0 for record in losses)
    before, after = weights(emitting('drawing')), weights(tmp_path / 'run' / 'slice_end')
    changed = [key for key in before if not torch.equal(before[key], after[key].to(before[key]))]
    assert any('embed_tokens' in key for key in changed)
    for file in (emitting('drawing') / 'codecs' / 'image').iterdir():
        assert (tmp_path / 'run' / 'slice_end' / 'codecs' / 'image' / file.name).read_bytes() == file.read_bytes()
    spec = load_spec(tmp_path / 'run' / 'slice_end')
    assert spec.codes.kinds == load_spec(emitting('drawing')).codes.kinds


def test_the_first_ratio_of_pictures_is_one(emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    succeed(
        sft(tmp_path / 'run', emitting('drawing'), rows, **online(rows, max_steps=1)),
        pair=DRAWING,
        algorithm=named('grpo'),
    )
    (record,) = [line for line in lines(tmp_path / 'run' / 'metrics.jsonl') if 'train/reward' in line]
    assert record['train/rollout_drift'] < 1e-5
    assert record['train/ratio'] == record['train/ratio/image'] == pytest.approx(1, abs=1e-5)
    shown = lines(tmp_path / 'run' / 'completions.jsonl')
    assert {line['response'] for line in shown} == {'<image>'} and all(line['finished'] for line in shown)


@pytest.mark.parametrize(
    ('kind', 'pair', 'reward', 'words'),
    [
        ('drawing', DRAWING, 'duration', "'duration' judges audio, and responses hold image"),
        ('singing', SINGING, 'brightness', "'brightness' judges image and video, and responses hold audio"),
        ('drawing', PAIRS['text_to_text'], 'jpeg_size', 'and responses hold text alone'),
    ],
)
def test_rewards_that_find_nothing_to_judge_are_refused(
    kind: str, pair: Any, reward: str, words: str, emitting: Emitting, rows: Path, tmp_path: Path
) -> None:
    how = online(rows, reward_functions=f'[{reward}]', max_new_tokens=40)
    how |= {'reward_kwargs': '{duration: {target: 1}}'} if reward == 'duration' else {}
    if pair.writes_text:
        how |= {'train_datasets': write_rows(tmp_path / 'rows.jsonl', text_rows(4)), 'template': 'Instruction'}
    (ended,) = run(sft(tmp_path / 'run', emitting(kind), rows, **how), pair=pair, algorithm=named('grpo'))
    assert ended.code == 2 and words in ended.output


def test_pictures_that_nobody_decodes_are_not_looked_at(tiny: Emitting, rows: Path, tmp_path: Path) -> None:
    """Chameleon has no decoder in transformers."""
    how = online(rows, reward_functions='[brightness]', max_new_tokens=80)
    (ended,) = run(sft(tmp_path / 'run', tiny('chameleon'), rows, **how), pair=DRAWING, algorithm=named('grpo'))
    assert ended.code == 2 and "'brightness' judges image, and the codec in" in ended.output


def test_a_melody_is_sung_until_the_model_ends_it(emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    how = online(rows, reward_functions=f'[{rows.parent}/rewards.py:heard]', max_new_tokens=40, max_steps=1)
    succeed(sft(tmp_path / 'run', emitting('singing'), rows, **how), pair=SINGING, algorithm=named('grpo'))
    shown = lines(tmp_path / 'run' / 'completions.jsonl')
    # An untrained model ends a sound at one frame in 24 or so; what was cut is shown with its codes.
    assert shown and all(line['finished'] == (line['response'] == '<audio>') for line in shown)


def test_text_and_pictures_stand_in_one_response(emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    how = online(rows, reward_functions=f'[{rows.parent}/rewards.py:pictures]', max_new_tokens=40, max_steps=1)
    how |= {'train_template_kwargs': '{images: ""}'}
    argv = sft(tmp_path / 'run', emitting('drawing'), rows, model_max_length=160, **how)
    succeed(argv, pair=MIXED, algorithm=named('grpo'))
    assert len(lines(tmp_path / 'run' / 'completions.jsonl')) == 4


@pytest.mark.parametrize('stage', [pytest.param(0), pytest.param(2, marks=pytest.mark.extended), 3])
def test_ranks_of_which_one_has_no_picture_train_alike(
    stage: int, emitting: Emitting, rows: Path, tmp_path: Path
) -> None:
    told = [json.loads(line) for line in rows.read_text().splitlines()][:4]
    talk = [{'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': 'Good day.'}]
    mixed = [record if number % 2 else {'messages': talk} for number, record in enumerate(told)]
    mixed = [{'messages': record['messages']} for record in mixed]
    file = write_rows(rows.parent / f'mixed-{stage}.jsonl', mixed)
    how = {'template': 'Messages', 'per_device_train_batch_size': 1, 'code_loss_over': 'range'}
    argv = sft(tmp_path / 'two', emitting('drawing'), file, ds_cfgs=f'ds_z{stage}_config.json', **how)
    succeed(argv, 2, MIXED)
    alone = {**how, 'per_device_train_batch_size': 2}
    succeed(sft(tmp_path / 'one', emitting('drawing'), file, **alone), 1, MIXED)
    one, two = (
        [record['train/loss'] for record in lines(tmp_path / name / 'metrics.jsonl') if 'train/loss' in record]
        for name in ('one', 'two')
    )
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', first_of(['sft', 'grpo'], 'sft'))
def test_a_killed_run_goes_on_as_if_nothing_was(name: str, emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    how = {**HOW['sft'], 'per_device_train_batch_size': 2} if name == 'sft' else online(rows, max_steps=4)
    how |= {'save_interval': 2, 'save_total_limit': 2}
    loop = OfflineLoop if name == 'sft' else OnlineLoop

    def killed(rank: int) -> None:
        step = loop._step

        def watched(self: Any, loaded: Any) -> bool:
            if self.progress.step == 3:
                die()
            return step(self, loaded)

        loop._step = watched

    succeed(sft(tmp_path / 'whole', emitting('drawing'), rows, **how), pair=DRAWING, algorithm=named(name))
    run(sft(tmp_path / 'cut', emitting('drawing'), rows, **how), 1, DRAWING, killed, named(name))
    again = sft(tmp_path / 'cut', emitting('drawing'), rows, '--resume', 'auto', **how)
    succeed(again, pair=DRAWING, algorithm=named(name))
    expected, found = (weights(tmp_path / name / 'slice_end') for name in ('whole', 'cut'))
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    whole, cut = ((tmp_path / name / 'metrics.jsonl').read_text() for name in ('whole', 'cut'))
    assert whole == cut


def test_codes_are_made_once(emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    """Of a picture in several rows too, before the first pack is written."""
    twice = rows.with_name('twice.jsonl')
    twice.write_text(rows.read_text() * 2)
    how = {**HOW['sft'], 'media_code_dir': tmp_path / 'codes', 'max_steps': 1, 'per_device_train_batch_size': 1}
    first = succeed(sft(tmp_path / 'one', emitting('drawing'), twice, **how), pair=DRAWING)
    second = succeed(sft(tmp_path / 'two', emitting('drawing'), rows, **how), pair=DRAWING)
    assert 'codes of media: 8 entries made' in first and 'codes of media: 0 entries made' in second
    assert not (tmp_path / 'one' / 'media_codes').exists()


def test_a_stream_brings_its_codes(emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    how = {**HOW['sft'], 'streaming': True, 'max_steps': 1}
    (ended,) = run(sft(tmp_path / 'run', emitting('drawing'), rows, **how), pair=DRAWING)
    assert ended.code == 2 and 'data_cfgs.streaming: the media of a stream' in ended.output
    question = {'role': 'user', 'content': 'draw the digit two'}
    answer = {'role': 'assistant', 'content': [{'type': 'image', 'image': {'codes': [[1, 2, 3, 4]] * 4}}]}
    file = write_rows(tmp_path / 'coded.jsonl', [{'messages': [question, answer]}] * 4)
    succeed(sft(tmp_path / 'coded', emitting('drawing'), file, **how), pair=DRAWING)
    assert lines(tmp_path / 'coded' / 'metrics.jsonl')[0]['train/loss'] > 0


def test_an_adapter_draws_too(emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    how = online(rows, **ADAPTER, lora_r=4, max_steps=1)
    succeed(sft(tmp_path / 'run', emitting('drawing'), rows, **how), pair=DRAWING, algorithm=named('grpo'))
    assert (tmp_path / 'run' / 'slice_end' / 'adapter_model.safetensors').exists()
    spec = load_spec(tmp_path / 'run' / 'slice_end')
    assert spec.emits == {'image'}


@pytest.mark.parametrize(
    ('saved', 'named_there'),
    [('null', 'model.embed_tokens'), ('[embed_tokens]', 'lm_head'), ('[lm_head]', 'model.embed_tokens')],
)
def test_codes_that_stay_all_alike_are_refused(
    emitting: Emitting, rows: Path, tmp_path: Path, saved: str, named_there: str
) -> None:
    """New tokens have one embedding, which an adapter would leave so."""
    how = {**HOW['sft'], 'use_lora': True, 'modules_to_save': saved}
    (ended,) = run(sft(tmp_path / 'run', emitting('drawing'), rows, **how), pair=DRAWING)
    assert ended.code == 2 and f'all have the same row in {named_there}' in ended.output
    assert 'Traceback' not in ended.output


def test_what_reads_no_codes_need_not_tell_them_apart(emitting: Emitting, tmp_path: Path) -> None:
    file = write_rows(tmp_path / 'rows.jsonl', text_rows(4))
    succeed(sft(tmp_path / 'run', emitting('drawing'), file, use_lora=True, max_steps=1))


def test_plain_transformers_goes_on_in_a_picture(emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    """After SFT over the vocabulary a plain engine, without a grammar, draws whole pictures."""
    how = {**HOW['sft'], 'epochs': 100, 'train_size': 2, 'learning_rate': 5e-3}
    told = succeed(sft(tmp_path / 'run', emitting('drawing'), rows, **how), pair=DRAWING)
    assert 'are new' not in told
    folder = tmp_path / 'run' / 'slice_end'
    spec, model = load_spec(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = json.loads(rows.read_text().splitlines()[0])['question']
    ids = tokenizer.apply_chat_template(
        [{'role': 'user', 'content': question}], add_generation_prompt=True, return_tensors='pt', return_dict=True
    )
    made = model.generate(**ids, do_sample=False, max_new_tokens=30)[0, ids['input_ids'].shape[1] :]
    (part,) = [part for part in spec.codes.parts(made.tolist()) if not isinstance(part, list)]
    assert part.codes.shape == (1, *SIZE)


@pytest.mark.parametrize(
    ('pair', 'kind', 'changes', 'reason'),
    [
        (DRAWING, 'singing', {}, 'writes no image'),
        (DRAWING, 'drawing', {'max_new_tokens': 10}, 'a response with one image has 19 tokens'),
        (DRAWING, 'drawing', {'emit_size': '{image: [3, 3]}'}, 'every image of this model has [4, 4] codes'),
        (DRAWING, 'drawing', {'emit_size': '{audio: 12}'}, 'responses hold no audio'),
        (DRAWING, 'drawing', {'emit_top_k': '{audio: 12}'}, 'emit_top_k.audio: responses hold no audio, but image'),
        (DRAWING, 'drawing', {'emit_size': '{image: [5, 5]}'}, 'model_cfgs.emit_size.image: every image of this model'),
        (DRAWING, 'drawing', {'repetition_penalty': 1.2}, 'it would keep codes from coming twice'),
        (DRAWING, 'drawing', {'top_k': 5}, 'model_cfgs.top_k: it is of text, and a response is one image'),
        (DRAWING, 'drawing', {'top_p': 0.5}, 'model_cfgs.top_p: it is of text'),
        (DRAWING, 'drawing', {'stop': '[end]'}, 'model_cfgs.stop: it is of text'),
        (DRAWING, 'drawing', {'media_codes': '{image: {codec: nowhere}}'}, 'holds no codec'),
        (DRAWING, 'drawing', {'media_codes': '{picture: {codec: nowhere}}'}, 'media_codes'),
        (PAIRS['text_to_text'], 'drawing', {'emit_size': '{image: [4, 4]}'}, 'a modality pair that writes text alone'),
        (DRAWING, 'drawing', {'emitted_loss_weights': '{image: -1}'}, 'emitted_loss_weights'),
        (DRAWING, 'drawing', {'emitted_loss_weights': '{audio: 0.5}'}, 'writes no audio, but image'),
    ],
)
def test_what_cannot_be_emitted_is_refused_before_a_model_loads(
    pair: Any, kind: str, changes: dict[str, Any], reason: str, emitting: Emitting, rows: Path, tmp_path: Path
) -> None:
    argv = sft(tmp_path / 'run', emitting(kind), rows, **online(rows, **changes))
    (ended,) = run(argv, pair=pair, algorithm=named('grpo'))
    assert ended.code == 2 and reason in ended.output, ended.output
    assert 'in force' not in ended.output


def test_weights_of_kinds_multiply_the_loss(emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    """Pictures of no weight leave what stands around them: in this pair the end of the answer."""
    how = {**HOW['sft'], 'max_steps': 1, 'per_device_train_batch_size': 8}
    succeed(sft(tmp_path / 'one', emitting('drawing'), rows, **how), pair=DRAWING)
    succeed(sft(tmp_path / 'none', emitting('drawing'), rows, emitted_loss_weights='{image: 0.0}', **how), pair=DRAWING)
    one, none = (lines(tmp_path / name / 'metrics.jsonl')[0]['train/loss'] for name in ('one', 'none'))
    assert one != none


def test_a_merged_adapter_keeps_its_codes(emitting: Emitting, rows: Path, tmp_path: Path) -> None:
    from align_anything.cli.merging import merge_adapter

    how = {**HOW['sft'], **ADAPTER, 'max_steps': 1}
    succeed(sft(tmp_path / 'run', emitting('drawing'), rows, **how), pair=DRAWING)
    merge_adapter(tmp_path / 'run', tmp_path / 'merged')
    assert load_spec(tmp_path / 'merged').codes.kinds == load_spec(emitting('drawing')).codes.kinds
    assert load_file(tmp_path / 'merged' / 'model.safetensors')


def test_an_adapter_keeps_codes_that_the_settings_alone_declared(
    emitting: Emitting, rows: Path, tmp_path: Path
) -> None:
    """Of a base that declares nothing: the adapter's folder says them, and so does what is merged from it."""
    from align_anything.cli.merging import merge_adapter

    base = shutil.copytree(emitting('drawing'), tmp_path / 'base', ignore=shutil.ignore_patterns('codecs'))
    config = json.loads((base / 'config.json').read_text())
    declared = {**config.pop('media_codes')['image'], 'codec': str(emitting('drawing') / 'codecs' / 'image')}
    (base / 'config.json').write_text(json.dumps(config))
    how = {**HOW['sft'], **ADAPTER, 'max_steps': 1, 'media_codes': json.dumps({'image': declared})}
    succeed(sft(tmp_path / 'run', base, rows, **how), pair=DRAWING)
    merge_adapter(tmp_path / 'run', tmp_path / 'merged')
    for folder in (tmp_path / 'run' / 'slice_end', tmp_path / 'merged'):
        assert load_spec(folder).codes.kinds == load_spec(emitting('drawing')).codes.kinds


def test_sounds_of_another_rate_are_resampled(emitting: Emitting, tmp_path: Path) -> None:
    import soundfile

    sound = melody([0, 3, 5])
    soundfile.write(tmp_path / 'sound.wav', sound.samples.repeat(2), 2 * sound.rate)
    record = {'text': 'sing do fa la', 'audio': 'sound.wav'}
    file = write_rows(tmp_path / 'rows.jsonl', [record] * 2)
    argv = sft(tmp_path / 'run', emitting('singing'), file, template='TTS')
    succeed(argv, pair=SINGING)


def test_text_runs_of_a_drawing_model_never_draw(emitting: Emitting, tmp_path: Path) -> None:
    file = write_rows(tmp_path / 'rows.jsonl', text_rows(4))
    (tmp_path / 'rewards.py').write_text('def none(completions):\n    return [len(c.response) for c in completions]\n')
    how = {**online(file), 'template': 'Instruction', 'reward_functions': f'[{tmp_path}/rewards.py:none]'}
    succeed(
        sft(tmp_path / 'run', emitting('drawing'), file, **how), pair=PAIRS['text_to_text'], algorithm=named('grpo')
    )
    shown = lines(tmp_path / 'run' / 'completions.jsonl')
    assert shown and not any('<|image' in line['response'] or '<image>' in line['response'] for line in shown)
