"""`generate`: prompts in, answers, media, scores and pairs out, whatever the model; killed, it goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from align_anything.algorithms.base import find_algorithm
from align_anything.algorithms.generate import Generate
from align_anything.reporting.appended import AppendedFiles
from align_anything.trainers.pairs import PAIRS, Pair
from tests.trainers.runs import IMAGE, TEXT, die, lines, run, sft, succeed, write_rows
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
    learn(tmp_path / 'dpo', model, out / 'pairs.jsonl', PICTURES, model_max_length=None)
