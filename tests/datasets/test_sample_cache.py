"""Samples on disk: what comes back is what was made, nothing else ever does, and nothing can break a run."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from align_anything.core import store
from align_anything.core.errors import SettingsError
from align_anything.core.types import Example, Piece, Skipped
from align_anything.datasets import code, sample_cache
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask, Task
from align_anything.datasets.media import decoding
from align_anything.datasets.mixture import StreamedRow
from align_anything.datasets.preference import PreferenceTask, UnpairedTask
from align_anything.datasets.sample_cache import SampleCache
from align_anything.datasets.source_loading import load_sources
from align_anything.models.fingerprint import encoding_fingerprint
from align_anything.models.pretrained_model import load_spec
from tests.datasets.clips import clip, sound, tone
from tests.datasets.fakes import encode, write_rows
from tests.harness.ranks import run_ranks
from tests.trainers.runs import IMAGE, lines, sft, succeed, text_rows

KINDS = frozenset({'image', 'video', 'audio'})
FAMILY = {'image': 'qwen2_vl', 'video': 'qwen2_vl', 'audio': 'qwen2_audio'}
OWN = """
from align_anything.datasets.formatters.base import BaseFormatter


class Own(BaseFormatter):
    def format_supervised_sample(self, row):
        answer = {'role': 'assistant', 'content': row['answer']}
        meta = {'image': row['image']} if row.get('image') else {}
        return [{'role': 'user', 'content': row['ask']}, answer], {**meta, 'tag': row.get('tag')}
"""


def picture(path: Path, colour: str = 'red', size: tuple[int, int] = (60, 40)) -> Path:
    # Not compressed: images of one size take as many bytes.
    Image.new('RGB', size, colour).save(path, 'BMP')
    return path


def dataset_of(
    rows: Any,
    folder: Path | None,
    task: Task | None = None,
    encoding: str = '',
    template: Any = 'Messages',
    **options: Any,
) -> ExampleDataset:
    """`rows` in a dataset that keeps its samples in `folder`; the task is that of the fake encoder when left out."""
    task = task or SupervisedTask(encode)
    kept = None if folder is None else SampleCache(folder, task, encoding)
    return ExampleDataset(
        load_sources(str(rows), str(template), **options), task, 'any_to_text', KINDS, {'audio': {'rate': 16000}}, kept
    )


def alike(one: Any, other: Any) -> bool:
    """Tells whether two samples are the same, types of tensors and order of names included."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
    if isinstance(one, (Example, Skipped)):
        return type(one) is type(other) and alike(asdict(one), asdict(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and one == other


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.is_file())


class Counting:
    """The fake encoder with a count of its calls."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.calls, self.fails = 0, fails

    def __call__(self, conversation: Any, train_on: str = 'all_assistant') -> Example:
        self.calls += 1
        if self.fails is not None:
            raise self.fails
        return encode(conversation, train_on)


@pytest.fixture
def media_rows(tmp_path: Path) -> Callable[[str], Path]:
    """`media_rows('image')` writes a row with that medium, one with text alone, and one that is too long."""

    def write(kind: str) -> Path:
        path = tmp_path / f'medium.{kind}'
        if kind == 'image':
            picture(path)
        else:
            path.write_bytes(clip([10, 200, 90, 30, 60, 120]) if kind == 'video' else sound(tone(0.4)))
        answer = {'role': 'assistant', 'content': 'a sea'}
        shown = [{'role': 'user', 'content': [{'type': kind, kind: str(path)}, {'type': 'text', 'text': 'what?'}]}]
        texts = [[{'role': 'user', 'content': words}, answer] for words in ('who?', 'sun ' * 600)]
        conversations = [[*shown, answer, *shown, answer], *texts]
        write_rows(tmp_path / f'{kind}.jsonl', [{'messages': turns} for turns in conversations])
        return tmp_path / f'{kind}.jsonl'

    return write


@pytest.mark.parametrize('kind', ['image', 'video', 'audio'])
def test_what_comes_back_is_what_was_made(kind: str, media_rows, tiny, tmp_path: Path, monkeypatch) -> None:
    rows, kept = media_rows(kind), tmp_path / 'kept'
    spec = load_spec(tiny(FAMILY[kind]), model_max_length=512)
    task, known = SupervisedTask(spec.encode), encoding_fingerprint(spec)
    plain, first = (dataset_of(rows, folder, task, known) for folder in (None, kept))
    fresh = [plain[index] for index in range(3)]
    assert isinstance(fresh[2], Skipped) and fresh[0].responses[0].media
    assert all(alike(first[index], fresh[index]) for index in range(3))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError('nothing is decoded or encoded again')

    again = load_spec(tiny(FAMILY[kind]), model_max_length=512)
    monkeypatch.setattr(type(spec.processor), '__call__', never)
    monkeypatch.setitem(decoding.DECODERS, kind, never)
    monkeypatch.setattr(again, 'render', never)
    task, known = SupervisedTask(again.encode), encoding_fingerprint(again)
    second = dataset_of(rows, kept, task, known)
    assert all(alike(second[index], fresh[index]) for index in range(3))
    # The same rows elsewhere and as a stream: the names are theirs.
    moved = rows.rename(tmp_path / 'moved.jsonl')
    stream = dataset_of(moved, kept, task, known, streaming=True)
    items = [stream[StreamedRow(0, name, row)] for name, row in stream.sources[0].rows]
    assert [item.source for item in items] == [f'{moved}:{number}' for number in (1, 2, 3)]
    for item, expected in zip(items, fresh, strict=True):
        assert alike({**asdict(item), 'source': ''}, {**asdict(expected), 'source': ''})


@pytest.mark.parametrize('task_class', [PreferenceTask, UnpairedTask])
def test_groups_of_answers_come_back(task_class: type[Task], tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny('llama'))
    pairs = [{'prompt': f'{n} sun', 'chosen': 'a sea here', 'rejected': f'tree {n}'} for n in range(3)]
    rows = write_rows(tmp_path / 'rows.jsonl', pairs)
    samples = [
        [dataset[index] for index in range(3)]
        for dataset in (
            dataset_of(rows, folder, task_class(encode_group), 'known', 'Preference')
            for folder, encode_group in (
                (None, spec.encode_group),
                (tmp_path / 'kept', spec.encode_group),
                (tmp_path / 'kept', lambda *_, **__: pytest.fail('it is kept')),
            )
        )
    ]
    assert isinstance(samples[0][0], Example) and (samples[0][0].unmatched is not None) == (task_class is UnpairedTask)
    assert alike(samples[0], samples[1]) and alike(samples[1], samples[2])


def test_every_kind_of_tensor_comes_back(tmp_path: Path) -> None:
    whole = torch.arange(12)
    prompt = Piece(
        whole[:4],
        torch.full((4,), 0.1),
        media={
            'z': torch.randn(3, 4, generator=torch.manual_seed(0)).bfloat16().T,
            'a': torch.tensor([True, False]),
            'none': torch.empty(0, 7, dtype=torch.float16),
            'one': torch.tensor(2.5, dtype=torch.float64),
            'wide': torch.ones(1, 1).expand(3, 5),
        },
        media_counts={'video': 2, 'image': 1},
        token_tensors={'kinds': whole[:4]},
    )
    made = Example(prompt, [Piece(whole[4:9], torch.ones(5)) for _ in range(12)], meta={'b': [1, None], 'a': 0.1})
    made.responses[11].ids = whole[9:]
    made.responses[1].per_unit['reference'] = torch.zeros(5)
    cache = SampleCache(tmp_path, SupervisedTask(encode), '')
    assert cache.example([], lambda: made) is made
    kept = cache.example([], lambda: pytest.fail('it is kept'))
    assert alike(kept, made)
    kept.prompt.ids[0] = 7  # What comes back can be written to.


def test_other_settings_never_hit(tiny, tmp_path: Path) -> None:
    folder = tiny('qwen2_vl')
    known = encoding_fingerprint(load_spec(folder))
    template = (folder / 'chat_template.jinja').read_text()
    specs = {
        'length': load_spec(folder, model_max_length=64),
        'processor': load_spec(folder, processor_kwargs={'max_pixels': 56 * 56}),
        'template': load_spec(folder, chat_template=template + ' '),
        'model': load_spec(tiny('qwen2_5_vl')),
        'vocabulary': load_spec(folder),
        'tokenizer': load_spec(folder),
    }
    specs['vocabulary'].tokenizer.add_tokens(['sunsea'])
    specs['tokenizer'].tokenizer.add_bos_token = True
    specs['tokenizer'].tokenizer.bos_token = '<|im_start|>'
    found = {name: encoding_fingerprint(spec) for name, spec in specs.items()}
    assert len({known, *found.values()}) == len(specs) + 1
    same = load_spec(folder)
    assert encoding_fingerprint(same) == known == encoding_fingerprint(same)
    keys = []
    for task, encoding in (
        (SupervisedTask(encode), 'one'),
        (SupervisedTask(encode), 'two'),
        (SupervisedTask(encode, 'last'), 'one'),
        (PreferenceTask(encode), 'one'),
        (PreferenceTask(encode, meta_keys=('margin',)), 'one'),
    ):
        SampleCache(tmp_path / 'kept', task, encoding).example([], lambda: encode([]))
        keys.append(len(files_in(tmp_path / 'kept')))
    assert keys == [1, 2, 3, 4, 5]


def test_the_code_and_the_libraries_are_in_the_key(tmp_path: Path, monkeypatch) -> None:
    def kept() -> int:
        code.code_digest.cache_clear()
        SampleCache(tmp_path, SupervisedTask(encode), '').example([], lambda: encode([]))
        return len(files_in(tmp_path))

    assert [kept(), kept()] == [1, 1]
    monkeypatch.setattr(code, 'version', lambda name: '0.1')
    assert kept() == 2
    monkeypatch.setattr(sample_cache, 'CODE', ('core',))
    assert kept() == 3
    code.code_digest.cache_clear()


def test_another_row_medium_or_template_misses(tmp_path: Path) -> None:
    shown = picture(tmp_path / 'a.png')
    (tmp_path / 'own.py').write_text(OWN)
    (tmp_path / 'edited.py').write_text(OWN.replace("row['ask']", "row['ask'] + '!'"))
    row = {'ask': 'what', 'answer': 'red', 'image': 'a.png', 'tag': 1}
    counting = Counting()

    def made(row: Any = row, train_on: str = 'all_assistant', template: str = 'own.py', **options: Any) -> int:
        """How often the row was encoded."""
        before = counting.calls
        rows = write_rows(tmp_path / 'rows.jsonl', [row])
        example = dataset_of(
            rows, tmp_path / 'kept', SupervisedTask(counting, train_on), '', f'{tmp_path}/{template}:Own', **options
        )[0]
        assert isinstance(example, Example) and example.meta == {'train_on': train_on, 'tag': row['tag']}
        return counting.calls - before

    assert [made(), made()] == [1, 0]
    assert [made({**row, 'tag': 2})] == [0], 'what only rides along is always that of the row'
    assert [made({**row, 'answer': 'blue'}), made(train_on='last')] == [1, 1]
    options = {'image': {'some': 1}}
    assert [made(media_options=options), made(media_options=options)] == [1, 0]
    assert made(template_kwargs={'system_prompt': 'Be brief.'}) == 0, 'this template makes no use of it'
    assert [made(template='edited.py'), made(template='edited.py'), made()] == [1, 0, 0]

    size = shown.stat().st_size
    picture(shown, 'tan')
    assert shown.stat().st_size == size
    assert [made(), made()] == [1, 0], 'the file changed, its size did not'
    os.utime(shown, ns=(1, 1))
    assert [made(), made()] == [1, 0]
    (tmp_path / 'more').mkdir()
    picture(tmp_path / 'more' / 'a.png')
    os.utime(tmp_path / 'more' / 'a.png', ns=(1, 1))
    assert [made(image_folder=str(tmp_path / 'more'))] == [1], 'another file of the same name, size and time'


def test_media_in_rows_are_told_by_their_content(tmp_path: Path) -> None:
    def contents(colour: str) -> list[Any]:
        path = picture(tmp_path / f'{colour}.png', colour)
        with Image.open(path) as image:
            array = torch.tensor(list(image.getdata()), dtype=torch.uint8).reshape(40, 60, 3).numpy()
        return [{'bytes': path.read_bytes(), 'path': 'x.png'}, path.read_bytes(), array]

    cache, counting = SampleCache(tmp_path / 'kept', SupervisedTask(encode), ''), Counting()

    def made(source: Any, kind: str = 'image') -> int:
        from align_anything.datasets.conversation import bind_media

        turns = [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y'}]
        conversation = bind_media(turns, {kind: source}, options={kind: {'allow_urls': True}})
        before = counting.calls
        cache.example([conversation], lambda: counting([]))
        return counting.calls - before

    red, tan = contents('red'), contents('tan')
    assert [made(source) for source in (*red, *tan, *contents('red'))] == [1] * 6 + [0] * 3
    assert [made({'array': red[2][:, 0, 0], 'sampling_rate': rate}, 'audio') for rate in (8000, 16000, 8000)] == [
        1,
        1,
        0,
    ]
    frames = [str(tmp_path / 'red.png'), str(tmp_path / 'tan.png')]
    assert [made([given], 'video') for given in (frames, frames[::-1], frames)] == [1, 1, 0]
    folder = tmp_path / 'clip'
    folder.mkdir()
    frame = picture(folder / '0.png')
    before = [made(str(folder), 'video'), made(str(folder), 'video')]
    os.utime(frame, ns=(1, 1))
    assert [*before, made(str(folder), 'video')] == [1, 0, 1]
    never_kept = (Image.new('RGB', (4, 4)), 'https://nowhere.invalid/a.png', str(tmp_path / 'missing.png'))
    assert [made(source) for source in (*never_kept, *never_kept)] == [1] * 6


@pytest.mark.parametrize('harm', ['cut', 'empty', 'bit', 'header', 'other'])
def test_a_broken_file_is_made_anew(harm: str, tmp_path: Path, caplog) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', [{'instruction': 'x', 'output': 'y' * 40}])
    counting = Counting()
    dataset = dataset_of(rows, tmp_path / 'kept', SupervisedTask(counting), '', 'Alpaca')
    expected = dataset[0]
    [file] = files_in(tmp_path / 'kept')
    whole = file.read_bytes()
    broken = {
        'cut': whole[:-9],
        'empty': b'',
        'bit': whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        'header': whole.replace(b'train_on', b'train_no'),
        'other': b'no such format',
    }
    assert broken[harm] != whole
    file.write_bytes(broken[harm])
    with caplog.at_level(logging.WARNING):
        assert alike(dataset[0], expected) and counting.calls == 2
    assert 'is made anew' in caplog.text and file.read_bytes() == whole
    assert alike(dataset[0], expected) and counting.calls == 2


def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    """The reason of a row that is too long is kept; a file that cannot be decoded now may be decoded tomorrow."""
    rows = write_rows(
        tmp_path / 'rows.jsonl',
        [{'ask': 'too long', 'answer': 'x'}, {'ask': 'what', 'answer': 'x', 'image': 'a.png'}],
    )
    (tmp_path / 'own.py').write_text(OWN)
    (tmp_path / 'a.png').write_bytes(b'no picture')
    counting = Counting()
    dataset = dataset_of(rows, tmp_path / 'kept', SupervisedTask(counting), '', f'{tmp_path}/own.py:Own')
    reasons = [[dataset[index].reason for index in (0, 1)] for _ in range(2)]
    assert reasons[0] == reasons[1] and 'prompt alone has 9 tokens' in reasons[0][0]
    assert counting.calls == 1 and len(files_in(tmp_path / 'kept')) == 1
    unkept = Example(Piece(torch.ones(1), torch.ones(1)), [], meta={'seen': {1, 2}})
    cache = SampleCache(tmp_path / 'none', SupervisedTask(encode), '')
    assert [cache.example([], lambda: unkept) for _ in range(2)] == [unkept] * 2
    assert files_in(tmp_path / 'none') == []


def test_a_full_disk_costs_the_cache_and_not_the_run(tmp_path: Path, monkeypatch, caplog) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', [{'instruction': str(number), 'output': 'y'} for number in range(3)])
    dataset = dataset_of(rows, tmp_path / 'kept', template='Alpaca')
    first, tries = dataset[0], []

    def full(path: Path, content: bytes, **_: Any) -> None:
        tries.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, 'atomic_write_bytes', full)
    with caplog.at_level(logging.WARNING):
        assert all(isinstance(dataset[index], Example) for index in (1, 2, 1))
    assert len(tries) == 1 and caplog.text.count('No space left') == 1 and 'Free some space' in caplog.text
    assert alike(dataset[0], first), 'what is kept is still read'


def test_a_folder_that_cannot_be_written_to_is_known_at_once(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(SettingsError, match='data_cfgs.sample_cache_dir: .*file/kept cannot be written to'):
        SampleCache(tmp_path / 'file' / 'kept', SupervisedTask(encode), '')


def test_ranks_that_write_the_same_rows_at_once(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', [{'instruction': str(n), 'output': 'y' * 9000} for n in range(20)])
    expected = [dataset_of(rows, None, template='Alpaca')[index] for index in range(20)]

    def body(rank: int) -> bool:
        dataset = dataset_of(rows, tmp_path / 'kept', template='Alpaca')
        return all(alike(dataset[index], expected[index]) for _ in range(3) for index in range(20))

    assert run_ranks(body, 3) == [True] * 3
    files = files_in(tmp_path / 'kept')
    assert len(files) == 20 and {file.suffix for file in files} == {'.safetensors'}


def test_the_second_run_neither_decodes_nor_encodes(tiny, tmp_path: Path) -> None:
    shown = [{**row, 'image': f'{number}.png'} for number, row in enumerate(text_rows(4))]
    for number in range(4):
        picture(tmp_path / f'{number}.png', size=(40 + 8 * number, 60))
    too_long = {'instruction': 'sun ' * 300, 'output': 'sea'}
    rows = Path(write_rows(tmp_path / 'rows.jsonl', [*shown, *text_rows(3, seed=1), too_long]))

    def count(name: str) -> Callable[[int], None]:
        def before(rank: int) -> None:
            decode, encode_one, counts = decoding.decode, SupervisedTask.encode, {'decoded': 0, 'encoded': 0}

            def note(what: str) -> None:
                counts[what] += 1
                (tmp_path / f'{name}-{rank}.json').write_text(json.dumps(counts))

            decoding.decode = lambda media: note('decoded') or decode(media)
            SupervisedTask.encode = lambda task, found: note('encoded') or encode_one(task, found)

        return before

    def trained(name: str) -> list[Any]:
        options = {'epochs': 2, 'max_skipped_ratio': 0.5, 'media_cache_mb': 0, 'sample_cache_dir': tmp_path / 'kept'}
        succeed(sft(tmp_path / name, tiny('llava'), rows, **options), ranks=2, pair=IMAGE, before=count(name))
        return [lines(tmp_path / name / file) for file in ('metrics.jsonl', 'skipped_samples.jsonl')]

    def counted(name: str, what: str) -> int:
        found = [tmp_path / f'{name}-{rank}.json' for rank in range(2)]
        return sum(json.loads(path.read_text())[what] for path in found)

    # In the first epoch of the first run, nothing is kept yet.
    first, second = trained('first'), trained('second')
    assert first == second and all(first)
    # Each rank takes the first row to see whether its template fits, and once more whether it can be encoded, unless
    # the other one has kept it by then; each other row is then encoded once, by one rank.
    assert counted('first', 'decoded') - (2 + 4) in (0, 1)
    assert counted('first', 'encoded') - (2 + len(rows.read_text().splitlines())) in (0, 1)
    assert counted('second', 'decoded') == counted('second', 'encoded') == 2
