"""`generate`: prompts in, answers, media, scores and pairs out, whatever the model; killed, it goes on where it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align_anything.algorithms.base import find_algorithm
from align_anything.algorithms.generate import JUDGING, MEDIA, OBEYED, Generate, obeyed
from align_anything.cli.merging import merge_adapter
from align_anything.core.errors import DataError, ModelError, RewardError, SettingsError
from align_anything.core.types import Audio, Video
from align_anything.datasets.media.writing import files_of
from align_anything.reporting.appended import AppendedFiles
from align_anything.testing.tones import sounding_model
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS, Pair
from align_anything.trainers.runs.generate import generate as answer
from tests.harness.warm import import_vllm
from tests.trainers import test_settings_read
from tests.trainers.denoising import offline, write_digits
from tests.trainers.runs import IMAGE, TEXT, die, lines, run, sft, succeed, text_rows, write_rows
from tests.trainers.test_scoring import with_head

Tiny = Callable[..., Path]
PICTURES = PAIRS['text_to_image']
REWARDS = """
import numpy

def letters(completions):
    return [float(sum(map(str.isalpha, item.response))) for item in completions]

def flat(completions):
    return [1.0 for item in completions]

def dark(completions):
    pictures = [part['image'] for item in completions for part in item.message['content'] if part['type'] == 'image']
    return [1 - float(numpy.asarray(picture).mean()) / 255 for picture in pictures]
"""


def command(out: Path, model: Path, prompts: Path, **settings: Any) -> list[str]:
    """The command line of a run that generates, in float32."""
    values = {
        'model_name_or_path': model, 'train_datasets': prompts, 'output_dir': out, 'bf16': False, 'num_workers': 0,
        'model_max_length': 256, 'max_new_tokens': 6, 'per_device_prompt_batch_size': 2, **settings,
    }  # fmt: skip
    given = {key: value for key, value in values.items() if value is not None}
    return [part for key, value in given.items() for part in (f'--{key}', str(value))]


def generate(argv: list[str], ranks: int = 1, pair: Pair = TEXT) -> str:
    return succeed(argv, ranks, pair, algorithm=Generate)


def refused(argv: list[str], pair: Pair = TEXT) -> str:
    (ended,) = run(argv, pair=pair, algorithm=Generate)
    assert ended.code == 2 and 'Traceback' not in ended.output, ended.output
    return ended.output


def text(folder: Path, count: int = 7) -> Path:
    file = folder / 'prompts.txt'
    file.write_text('\n'.join(f'{number} {"sun " * number}' for number in range(count)) + '\n')
    (folder / 'rewards.py').write_text(REWARDS)
    return file


def reward(prompts: Path, name: str = 'letters') -> str:
    return f'[{prompts.parent}/rewards.py:{name}]'


def learn(out: Path, model: Path, rows: Path, pair: Pair = TEXT, **settings: Any) -> Path:
    """Trains on pairs by dpo, with nothing said of how to read them."""
    given = {'template': 'Preference', 'max_steps': 2, 'model_max_length': 512, **settings}
    succeed(sft(out, model, rows, **given), pair=pair, algorithm=find_algorithm('dpo'))
    return out


def test_half_a_surrogate_pair_in_a_row_is_written_as_it_came(tmp_path: Path) -> None:
    record = {'reference_answer': '\ud800'}
    AppendedFiles(tmp_path, ['a.jsonl'], 'state.json', resume=False).append({'a.jsonl': [record]}, {})
    assert lines(tmp_path / 'a.jsonl') == [record]


@pytest.mark.extended
@pytest.mark.extended
def test_every_setting_is_read(tiny: Tiny, emitting: Tiny, tmp_path: Path) -> None:
    """In three runs that between them use what there is; those of a service and of servers have their own tests."""
    prompts, judge = text(tmp_path, 2), with_head(tiny('llama'), tmp_path / 'judge')
    own = {'reward_functions': reward(prompts), 'reward_model_name_or_path': judge, 'make_pairs': True}
    (tmp_path / 'adapter').mkdir()
    runs: list[tuple[Pair, dict[str, Any]]] = [
        (TEXT, {'model': tiny('qwen2'), 'num_generations': 2, 'stop': '[sun]', **own}),
        (PICTURES, {'model': emitting('drawing'), 'max_new_tokens': 80}),
        (PICTURES, {'model': tiny('sd3'), 'max_new_tokens': None, 'model_max_length': None, 'rollout_steps': 2}),
    ]
    found: set[str] = set()
    for number, (pair, given) in enumerate(runs):
        note, more = tmp_path / f'{number}.json', dict(given)
        argv = command(tmp_path / str(number), more.pop('model'), prompts, **more)
        succeed(argv, 1, pair, test_settings_read.record(note), Generate)
        found |= set(json.loads(note.read_text()))
    elsewhere = {path for path in obeyed(OBEYED, JUDGING) if 'vllm' in path or 'remote_rm' in path}
    elsewhere |= {f'data_cfgs.{key}' for key in MEDIA} | {'model_cfgs.reward_model_unread_score'}
    own_keys = {f'train_cfgs.{key}' for key in Generate.model_fields}
    assert sorted((obeyed(OBEYED, JUDGING) | own_keys) - found - elsewhere) == []


@pytest.mark.extended
def test_two_commands_close_the_loop(tiny: Tiny, tmp_path: Path) -> None:
    prompts = text(tmp_path)
    judge = with_head(tiny('llama'), tmp_path / 'judge')
    out = tmp_path / 'out'
    generate(
        command(
            out, tiny('qwen2'), prompts, num_generations=3, reward_functions=reward(prompts),
            reward_model_name_or_path=judge, reward_model_weight=0.0, make_pairs=True,
        )
    )  # fmt: skip
    records = lines(out / 'generations.jsonl')
    assert [record['row'] for record in records] == list(range(7))
    assert records[2]['messages'] == [{'role': 'user', 'content': '2 sun sun'}]
    for record in records:
        assert [set(response['scores']) for response in record['responses']] == [{'letters', 'model'}] * 3
        scores = [response['score'] for response in record['responses']]
        assert scores == [sum(map(str.isalpha, response['text'])) for response in record['responses']]
        assert record['best'] == scores.index(max(scores))
    pairs, summary = lines(out / 'pairs.jsonl'), json.loads((out / 'summary.json').read_text())
    differing = [record for record in records if len({response['score'] for response in record['responses']}) > 1]
    assert len(pairs) == len(differing) == summary['pairs'] and summary['pairs'] + summary['ties'] == 7
    for made, record in zip(pairs, differing, strict=True):
        assert made['chosen'] == [{'role': 'assistant', 'content': record['responses'][record['best']]['text']}]
        assert made['chosen_score'] > made['rejected_score']
    learnt = learn(tmp_path / 'dpo', tiny('qwen2'), out / 'pairs.jsonl')
    # What was trained answers too, the folder of the run standing for the model in it.
    generate(command(tmp_path / 'again', learnt, prompts))
    assert len(lines(tmp_path / 'again' / 'generations.jsonl')) == 7


def stop_after(batches: int) -> Callable[[int], None]:
    """Kills the run while it writes what follows so many batches, the first file written and the state not."""

    def before(rank: int) -> None:
        inner, done = AppendedFiles.append, []

        def append(self: AppendedFiles, records: Any, known: Any) -> None:
            done.append(1)
            if len(done) > batches:
                with open(self._paths['generations.jsonl'], 'ab') as file:
                    file.write(b'{"row": 99, "sou')
                die()
            inner(self, records, known)

        AppendedFiles.append = append

    return before


def test_ranks_and_kills_change_nothing(tiny: Tiny, tmp_path: Path) -> None:
    prompts, model = text(tmp_path), tiny('qwen2')
    more = {'num_generations': 2, 'reward_functions': reward(prompts), 'make_pairs': True}
    whole, two, killed = (command(tmp_path / name, model, prompts, **more) for name in ('whole', 'two', 'killed'))
    generate(whole)
    generate(two, ranks=2)
    (ended,) = run([*killed, '--resume', 'auto'], before=stop_after(2), algorithm=Generate)
    assert ended.code is None and len(lines(tmp_path / 'whole' / 'generations.jsonl')) == 7
    assert 'generations.jsonl' in refused(killed)
    assert 'model_cfgs.top_p' in refused([*killed, '--resume', 'auto', '--top_p', '0.5'])
    generate([*killed, '--resume', 'auto'])
    for name in ('generations.jsonl', 'pairs.jsonl', 'summary.json'):
        expected = (tmp_path / 'whole' / name).read_bytes()
        assert expected and all((tmp_path / out / name).read_bytes() == expected for out in ('two', 'killed'))


@pytest.mark.extended
def test_a_row_hangs_on_nothing_before_it(tiny: Tiny, tmp_path: Path) -> None:
    prompts, model = text(tmp_path), tiny('qwen2')
    generate(command(tmp_path / 'few', model, prompts, per_device_prompt_batch_size=1))
    generate(command(tmp_path / 'many', model, prompts, per_device_prompt_batch_size=7, generation_batch_size=3))
    few, many = (lines(tmp_path / name / 'generations.jsonl') for name in ('few', 'many'))
    assert few == many


def test_pictures_that_are_read_come_along(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / 'rewards.py').write_text(REWARDS)
    folder = tmp_path / 'data'
    folder.mkdir()
    for number in range(3):
        Image.new('RGB', (20 + number, 30), (80 * number, 0, 0)).save(folder / f'{number}.png')
    (folder / '9.png').write_bytes(b'no picture')
    rows = [{'prompt': f'What is in {n}?', 'image': f'{n}.png', 'answer': str(n)} for n in (0, 1, 9, 2)]
    prompts = write_rows(folder / 'rows.jsonl', rows)
    out = tmp_path / 'out'
    more = {'num_generations': 3, 'make_pairs': True, 'max_skipped_ratio': 0.5}
    rewards = f'[{tmp_path}/rewards.py:letters]'
    generate(command(out, tiny('llava'), prompts, reward_functions=rewards, **more), pair=IMAGE)
    records = lines(out / 'generations.jsonl')
    assert [record['row'] for record in records] == [0, 1, 3]
    assert [record['reference_answer'] for record in records] == ['0', '1', '2']
    assert records[2]['messages'][0]['content'][0] == {'type': 'image', 'image': str(folder / '2.png')}
    (skipped,) = lines(out / 'skipped_samples.jsonl')
    assert skipped['source'].endswith('rows.jsonl:3')
    assert lines(out / 'pairs.jsonl')
    learn(tmp_path / 'dpo', tiny('llava'), out / 'pairs.jsonl', IMAGE)


NEEDED = {'model_name_or_path': 'm', 'train_datasets': 'd', 'output_dir': 'o'}


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'num_generation': 2}, "Did you mean 'num_generations'"),
        ({'make_pairs': True, 'reward_functions': '[format]'}, 'it means nothing with one response to a prompt'),
        ({'make_pairs': True, 'num_generations': 2}, 'it means nothing where nothing scores responses'),
        ({'learning_rate': 1}, 'generate trains nothing and does not read it'),
        ({'use_lora': True}, 'generate trains nothing and does not read it'),
        ({'guidance_scale': 2}, 'a modality pair that writes text alone'),
        ({'per_device_eval_batch_size': 2}, 'without model_cfgs.reward_model_name_or_path'),
        ({'reward_weights': '[2]'}, 'without reward_cfgs.reward_functions'),
        ({'temperature': -1}, 'greater than or equal to 0'),
        ({'use_vllm': True, 'generation_batch_size': 4}, 'it means nothing without use_vllm: False'),
        ({'output_dir': None}, 'name the folder that the run writes to'),
        ({'train_datasets': None}, 'name the training data'),
    ],
)
def test_settings_without_meaning(given: dict[str, Any], words: str) -> None:
    argv = [part for key, value in {**NEEDED, **given}.items() if value is not None
            for part in (f'--{key}', str(value))]  # fmt: skip
    with pytest.raises(SettingsError, match=re.escape(words)):
        settings_of(TEXT, Generate, argv, {})


def test_what_cannot_be_answered(tiny: Tiny, tmp_path: Path) -> None:
    """Each ends in one sentence, before weights are read."""
    prompts, model = text(tmp_path), tiny('qwen2')
    empty, broken = tmp_path / 'empty.txt', tmp_path / 'broken.jsonl'
    empty.write_text('\n')
    (tmp_path / 'x.png').write_bytes(b'no picture')
    write_rows(broken, [{'prompt': 'What is it?', 'image': 'x.png'}])
    judge = with_head(tiny('llama'), tmp_path / 'judge')
    lost = tmp_path / 'lost'
    lost.mkdir()
    gone = {'base_model_name_or_path': str(tmp_path / 'gone'), 'peft_type': 'LORA', 'r': 4, 'lora_alpha': 8}
    (lost / 'adapter_config.json').write_text(json.dumps(gone))
    cases: list[tuple[Pair, dict[str, Any], type[Exception], str]] = [
        (TEXT, {'model': tmp_path / 'missing'}, ModelError, 'missing'),
        (TEXT, {'model': judge}, ModelError, 'it scores answers and writes none'),
        (TEXT, {'model': lost}, ModelError, 'which does not exist'),
        (TEXT, {'model': tiny('sd3'), 'max_new_tokens': None, 'model_max_length': None}, ModelError, 'text_to_text'),
        (PICTURES, {}, ModelError, 'writes no image'),
        (IMAGE, {}, ModelError, 'takes no image'),
        (TEXT, {'prompts': empty}, DataError, 'empty.txt'),
        (TEXT, {'prompts': tmp_path / 'no.jsonl'}, DataError, "doesn't exist"),
        (IMAGE, {'model': tiny('llava'), 'prompts': broken}, DataError, 'none of the first 1 rows'),
        (TEXT, {'max_new_tokens': 256}, DataError, 'at most 0 fit beside max_new_tokens'),
        (TEXT, {'resume': tmp_path}, SettingsError, '--resume auto'),
        (TEXT, {'reward_functions': '[no_such]'}, RewardError, 'no_such'),
        (TEXT, {'reward_model_name_or_path': model}, ModelError, 'has no score head'),
    ]
    for pair, given, kind, words in cases:
        own = {'model': model, 'prompts': prompts, **given}
        argv = command(tmp_path / 'out', own.pop('model'), own.pop('prompts'), **own)
        with pytest.raises(kind, match=re.escape(words)):
            answer(pair, settings_of(pair, Generate, argv, {}))
    assert not (tmp_path / 'out' / 'generations.jsonl').exists()


def test_pictures_that_are_painted(tiny: Tiny, tmp_path: Path) -> None:
    prompts = text(tmp_path, 3)
    out, model = tmp_path / 'out', tiny('sd3')
    more = {'max_new_tokens': None, 'model_max_length': None, 'rollout_steps': 2, 'num_generations': 2}
    dark = {'reward_functions': reward(prompts, 'dark'), 'make_pairs': True}
    generate(command(out, model, prompts, **more, **dark), pair=PICTURES)
    records = lines(out / 'generations.jsonl')
    names = [response['media'] for record in records for response in record['responses']]
    assert names[1] == ['media/00000000/response_1_1.png']
    assert all(Image.open(out / name).size == (32, 32) for own in names for name in own)
    assert len(lines(out / 'pairs.jsonl')) == 3


@pytest.mark.extended
def test_adapters(tiny: Tiny, tmp_path: Path) -> None:
    """The folder of a run with adapters answers as its model with the adapter merged in; so does that of a pipeline."""
    prompts, model = text(tmp_path, 3), tiny('qwen2')
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(6))
    lora = {'use_lora': True, 'learning_rate': 0.05, 'lora_r': 4}
    succeed(sft(tmp_path / 'lora', model, rows, **lora))
    merge_adapter(tmp_path / 'lora', tmp_path / 'merged')
    found = {}
    for name, source in (('plain', model), ('adapter', tmp_path / 'lora'), ('merged', tmp_path / 'merged')):
        generate(command(tmp_path / name, source, prompts, temperature=0))
        found[name] = [record['responses'] for record in lines(tmp_path / name / 'generations.jsonl')]
    assert found['adapter'] == found['merged'] != found['plain']


@pytest.mark.extended
@pytest.mark.parametrize('trains_text', [False, True])
def test_adapters_of_pipelines(tiny: Tiny, tmp_path: Path, trains_text: bool) -> None:
    prompts, model = text(tmp_path, 2), tiny('sd15')
    rows = write_digits(tmp_path)
    for name, more in (('lora', {}), ('whole', {'save_full_model': True})):
        settings = {'use_lora': True, 'lora_r': 4, 'learning_rate': 0.02, 'train_text_encoder': trains_text, **more}
        argv = offline(tmp_path / name, model, rows, **settings)
        succeed(argv, pair=PICTURES, algorithm=find_algorithm('sft'))
    pixels = {}
    for name, source in (('plain', model), ('adapter', tmp_path / 'lora'), ('merged', tmp_path / 'whole')):
        more = {'max_new_tokens': None, 'model_max_length': None, 'rollout_steps': 2}
        generate(command(tmp_path / name, source, prompts, **more), pair=PICTURES)
        files = sorted((tmp_path / name / 'media').rglob('*.png'))
        pixels[name] = np.stack([np.asarray(Image.open(file), int) for file in files])
    assert np.abs(pixels['adapter'] - pixels['merged']).max() <= 2
    assert np.abs(pixels['adapter'] - pixels['plain']).max() > 2


@pytest.mark.extended
def test_codes_come_back_as_they_were_sampled(emitting: Tiny, tmp_path: Path) -> None:
    prompts, model = text(tmp_path, 3), emitting('drawing')
    out = tmp_path / 'out'
    more = {'max_new_tokens': 80, 'num_generations': 2, 'reward_functions': reward(prompts, 'dark'), 'make_pairs': True}
    generate(command(out, model, prompts, **more), pair=PICTURES)
    record, (made, *_) = lines(out / 'generations.jsonl')[0], lines(out / 'pairs.jsonl')
    assert Image.open(out / record['responses'][0]['media'][0]).mode == 'RGB'
    (part,) = made['chosen'][0]['content']
    assert part['type'] == 'image' and len(part['image']['codes']) == 1 and part['image']['codec']
    learn(tmp_path / 'dpo', model, out / 'pairs.jsonl', PICTURES)


@pytest.mark.extended
@pytest.mark.parametrize(
    ('pair', 'family', 'kind'),
    [('text_audio_to_text', 'qwen2_audio', 'audio'), ('text_video_to_text', 'qwen2_vl', 'video')],
)
def test_sounds_and_clips_that_are_read(tiny: Tiny, tmp_path: Path, pair: str, family: str, kind: str) -> None:
    prompts = text(tmp_path)
    sound = Audio((0.3 * np.sin(np.arange(8000) / 9)).astype(np.float32), 16000)
    clip = Video(np.random.default_rng(0).integers(0, 256, (6, 56, 56, 3), np.uint8), np.arange(6) / 2, 2.0)
    suffix, content = files_of(kind, {'audio': sound, 'video': clip}[kind])[0 if kind == 'audio' else 1]
    (tmp_path / f'x{suffix}').write_bytes(content)
    rows = write_rows(tmp_path / 'rows.jsonl', [{'prompt': 'What is it?', kind: f'x{suffix}'}] * 3)
    out = tmp_path / 'out'
    more = {'num_generations': 3, 'make_pairs': True, 'reward_functions': reward(prompts), 'model_max_length': 1024}
    frames = {'num_frames': 4} if kind == 'video' else {}
    generate(command(out, tiny(family), rows, **more, **frames), pair=PAIRS[pair])
    made = lines(out / 'pairs.jsonl')
    asked = made[0]['prompt'][0]['content'][0]
    assert asked[kind] == str(tmp_path / f'x{suffix}') and asked.get('num_frames') == frames.get('num_frames')
    learn(tmp_path / 'dpo', tiny(family), out / 'pairs.jsonl', PAIRS[pair], model_max_length=1024)


@pytest.mark.extended
def test_painted_pictures_are_learned_from(tiny: Tiny, tmp_path: Path) -> None:
    prompts, out = text(tmp_path, 3), tmp_path / 'out'
    more = {'max_new_tokens': None, 'model_max_length': None, 'rollout_steps': 2, 'num_generations': 2}
    dark = {'reward_functions': reward(prompts, 'dark'), 'make_pairs': True}
    generate(command(out, tiny('sd3'), prompts, **more, **dark), pair=PICTURES)
    learn(tmp_path / 'dpo', tiny('sd3'), out / 'pairs.jsonl', PICTURES, model_max_length=None)


@pytest.mark.extended
@pytest.mark.parametrize(('pair', 'suffix'), [('text_to_audio', '.wav'), ('text_to_video', '.apng')])
def test_sounds_and_clips_that_are_made(tiny: Tiny, tmp_path: Path, pair: str, suffix: str) -> None:
    prompts = text(tmp_path, 2)
    kind = pair.removeprefix('text_to_')
    # A tiny pipeline has a rate at which no sound is read.
    model = tiny('ltx') if kind == 'video' else sounding_model(tmp_path / 'model')
    (tmp_path / 'loud.py').write_text(
        'import numpy\n\ndef loud(completions):\n'
        f'    made = [part[{kind!r}] for item in completions for part in item.message["content"]]\n'
        '    values = [numpy.asarray(vars(item).get("samples", vars(item).get("frames")), float) for item in made]\n'
        '    return [float(numpy.abs(own).mean()) for own in values]\n'
    )
    out = tmp_path / 'out'
    more = {'max_new_tokens': None, 'model_max_length': None, 'rollout_steps': 2, 'num_generations': 2}
    own = {'reward_functions': f'[{tmp_path}/loud.py:loud]', 'make_pairs': True}
    size = {'num_frames': 9, 'resolution': 64} if kind == 'video' else {}
    generate(command(out, model, prompts, **more, **own, **size), pair=PAIRS[pair])
    made = lines(out / 'pairs.jsonl')
    assert len(made) == 2 and made[0]['chosen'][0]['content'][0][kind].endswith(suffix)
    if kind == 'video':
        assert made[0]['chosen'][0]['content'][0]['num_frames'] == 9
    learn(tmp_path / 'dpo', model, out / 'pairs.jsonl', PAIRS[pair], model_max_length=None, **size)


@pytest.mark.extended
def test_rows_of_other_templates_and_conversations(tiny: Tiny, tmp_path: Path) -> None:
    """Answers in the data are left aside and kept beside; a beginning of the answer is gone on from."""
    turns = [
        {'role': 'system', 'content': 'Be brief.'},
        {'role': 'user', 'content': 'sun'},
        {'role': 'assistant', 'content': 'sea', 'prefix': True},
    ]
    (tmp_path / 'rewards.py').write_text(REWARDS)
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(3))
    talks = write_rows(tmp_path / 'talks.jsonl', [{'messages': turns}])
    model, out = tiny('qwen2'), tmp_path / 'out'
    more = {'train_template': '[Instruction, Prompts]', 'num_generations': 4, 'make_pairs': True}
    argv = command(out, model, f'[{rows}, {talks}]', reward_functions=f'[{tmp_path}/rewards.py:letters]', **more)
    generate([str(word) for word in argv])
    records = lines(out / 'generations.jsonl')
    assert [record.get('reference_answer') for record in records] == [row['output'] for row in text_rows(3)] + [None]
    assert records[3]['messages'] == turns
    made = lines(out / 'pairs.jsonl')[-1]
    assert made['prompt'] == turns[:2] and made['chosen'][0]['content'].startswith('sea')
    same = {**more, 'train_template': 'Instruction', 'reward_functions': f'[{tmp_path}/rewards.py:flat]'}
    flat = command(tmp_path / 'flat', model, rows, **same)
    assert '(0, and 3 prompts left out whose responses are worth the same)' in ' '.join(generate(flat).split())
    assert lines(tmp_path / 'flat' / 'pairs.jsonl') == []


@pytest.mark.extended
def test_vllm_answers_as_transformers_do(tiny: Tiny, tmp_path: Path) -> None:
    """Greedily, with an adapter that was handed over; two ranks each start an engine."""
    import_vllm()
    prompts, rows = text(tmp_path, 5), write_rows(tmp_path / 'rows.jsonl', text_rows(6))
    succeed(sft(tmp_path / 'lora', tiny('qwen2'), rows, use_lora=True, learning_rate=0.05, lora_r=4))
    generate(command(tmp_path / 'hf', tmp_path / 'lora', prompts, temperature=0))
    more = {'use_vllm': True, 'vllm_gpu_memory_utilization': 0.01}
    generate(command(tmp_path / 'vllm', tmp_path / 'lora', prompts, temperature=0, **more), ranks=2)
    assert lines(tmp_path / 'vllm' / 'generations.jsonl') == lines(tmp_path / 'hf' / 'generations.jsonl')
