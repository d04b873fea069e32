"""Templates of users get rows as `datasets` gives them: PIL images and sounds, decoded when their column is read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import Example, Skipped
from align_anything.datasets import get_template
from align_anything.datasets.conversation import MEDIA_KINDS
from align_anything.datasets.dataset import ExampleDataset, Source, SupervisedTask, Task
from align_anything.datasets.features import MediaRecord, RowView
from align_anything.datasets.formatters.base import CHECK_EQUAL, PREFERENCE, PROMPT_ONLY, SUPERVISED, UNMATCHED
from align_anything.datasets.preference import PreferenceTask
from align_anything.datasets.prompts import PromptTask
from align_anything.datasets.source_loading import load_sources
from align_anything.datasets.template_registry import make_formatter
from tests.datasets.clips import sound, tone
from tests.datasets.fakes import encode, encode_group, text_of, write_rows

# As the documents of align-anything write them, word for word.
DOCUMENTS = """
from typing import Any

from align_anything.configs.format_dataset import BaseFormatter
from align_anything.datasets.template_registry import register_template


@register_template('Alpaca')
class Alpaca(BaseFormatter):
    def format_supervised_sample(self, raw_sample: dict[str, Any]) -> tuple[list[dict[str, Any]], dict]:
        prompt = ' '.join((raw_sample['instruction'], raw_sample['input']))
        response = raw_sample['output']
        return [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ], {}


@register_template('AA_TI2T')
class AA_TI2T(BaseFormatter):
    system_prompt: str = ""
    def format_preference_sample(self, raw_sample: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
        better_id = int(raw_sample['overall_response'])
        worse_id = 2 if better_id==1 else 1
        if better_id not in [1, 2] or worse_id not in [1, 2]:
            return [], [], {}
        raw_better_response = raw_sample[f'response_{better_id}']
        raw_worse_response = raw_sample[f'response_{worse_id}']
        prompt = raw_sample['question']
        image = raw_sample['image'].convert('RGBA')
        better_conversation = [
            {'role': 'user', 'content': [
                {'type': 'image'},
                {'type': 'text', 'text': prompt},
            ]
            },
            {'role': 'assistant', 'content': [{'type': 'text', 'text': raw_better_response}]},
        ]
        worse_conversation = [
            {'role': 'user', 'content': [
                {'type': 'image'},
                {'type': 'text', 'text': prompt},
            ]
            },
            {'role': 'assistant', 'content': [{'type': 'text', 'text': raw_worse_response}]},
        ]
        meta_info = {
            'image': image,
            'better_response': raw_better_response,
            'worse_response': raw_worse_response,
        }
        return better_conversation, worse_conversation, meta_info


@register_template('AA_TA2T')
class AA_TA2T(BaseFormatter):
    system_prompt: str = 'You are a helpful assistant.'
    def format_prompt_only_sample(self, raw_sample: dict[str, Any]) -> dict[str, Any]:
        prompt = raw_sample['prompt']
        audio_path = raw_sample['audio_path']
        conversation = [
            {'role': 'system', 'content': [{'type': 'text', 'text': self.system_prompt}]},
            {'role': 'user', 'content': [
                {'type': 'audio', 'audio_url': audio_path},
                {'type': 'text', 'text': prompt},
            ]},
        ]
        return conversation, {'audio_path': audio_path}
"""  # noqa: E501

# As align-anything's own templates for diffusion models are written.
DRAWN = """
import io
from typing import Any

import numpy
from PIL import Image

from align_anything.configs.format_dataset import BaseFormatter
from align_anything.datasets.template_registry import register_template


@register_template('Canny')
class Canny(BaseFormatter):
    def format_diffusion_supervised_sample(self, raw_sample: dict[str, Any]) -> tuple[str, Any]:
        multi_modal_info = {'image': raw_sample['image'].convert('RGB'), 'kept': 1}
        return raw_sample['question'], multi_modal_info


@register_template('Picked')
class Picked(BaseFormatter):
    def format_diffusion_preference_sample(self, raw_sample: dict[str, Any]) -> dict[str, Any]:
        better_image = Image.new('RGB', (5, 4), 'blue')
        worse_image = raw_sample['image']
        return raw_sample['question'], {'better_image': better_image, 'worse_image': worse_image}

    def check_equal(self, raw_sample: dict[str, Any]) -> bool:
        return raw_sample['overall_response'] == 3


@register_template('Heard')
class Heard(BaseFormatter):
    def format_diffusion_supervised_sample(self, raw_sample: dict[str, Any]) -> tuple[str, Any]:
        audio = numpy.array(raw_sample['audio']['array'])
        return raw_sample['question'], {'audio': audio, 'sampling_rate': raw_sample['audio']['sampling_rate']}


@register_template('Doubled')
class Doubled(BaseFormatter):
    def format_diffusion_supervised_sample(self, raw_sample: dict[str, Any]) -> tuple[str, Any]:
        return raw_sample['question'], {'image': raw_sample['image'], 'video': 'a.mp4'}
"""

OWN = """
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.template_registry import register_template


@register_template('DocumentLike')
class DocumentLike(BaseFormatter):
    def format_preference_sample(self, raw_sample):
        image = raw_sample['image'].convert('RGBA')
        user = {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': raw_sample['question']}]}
        answers = [{'role': 'assistant', 'content': raw_sample[key]} for key in ('better', 'worse')]
        return [user, answers[0]], [user, answers[1]], {'image': image}

    def format_prompt_only_sample(self, raw_sample):
        seconds = len(raw_sample['audio']['array']) / raw_sample['audio']['sampling_rate']
        text = f'{raw_sample["question"]} ({seconds:.1f} s)'
        parts = [{'type': 'audio'}, {'type': 'text', 'text': text}]
        return [{'role': 'user', 'content': parts}], {'audio': raw_sample['audio']}


class Wide(BaseFormatter):
    def check_validation(self, raw_sample):
        return raw_sample['image'].width > 3

    def format_supervised_sample(self, raw_sample):
        size = raw_sample['image'].size
        turns = [{'role': 'user', 'content': 'size?'}, {'role': 'assistant', 'content': f'{size[0]} x {size[1]}'}]
        return turns, {'image': raw_sample['image'], 'row': raw_sample}


class Blind(BaseFormatter):
    def format_supervised_sample(self, raw_sample):
        rest = {**raw_sample} if raw_sample['question'] == 'all' else {}
        turns = [{'role': 'user', 'content': raw_sample['question']}, {'role': 'assistant', 'content': 'yes'}]
        return turns, {'seen': sorted(rest)}
"""


@pytest.fixture
def templates(tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / 'documents.py').write_text(DOCUMENTS)
    (tmp_path / 'own.py').write_text(OWN)
    (tmp_path / 'drawn.py').write_text(DRAWN)
    files = {'own': OWN, 'drawn': DRAWN, 'documents': DOCUMENTS}
    return lambda name: f'{tmp_path}/{next(file for file, text in files.items() if name in text)}.py:{name}'


def png(path: Path, size: tuple[int, int] = (6, 4)) -> bytes:
    Image.new('RGB', size, 'red').save(path)
    return path.read_bytes()


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Columns of Hugging Face features, of which the second image is broken."""
    import datasets

    pictures = [png(tmp_path / 'a.png'), b'not a picture', png(tmp_path / 'b.png', (2, 2))]
    heard = sound(tone(0.5, 8000), 8000)
    columns = {
        'image': [{'bytes': picture, 'path': None} for picture in pictures],
        'audio': [{'bytes': heard, 'path': 'a.wav'}] * 3,
        'question': ['what?', 'what?', 'what?'],
        **{name: [name] * 3 for name in ('better', 'worse', 'response_1', 'response_2')},
        'overall_response': [2, 1, 3],
    }
    features = {name: datasets.Value('string') for name in columns}
    features |= {'image': datasets.Image(), 'audio': datasets.Audio(sampling_rate=16000)}
    features |= {'overall_response': datasets.Value('int64')}
    path = str(tmp_path / 'rows.parquet')
    datasets.Dataset.from_dict(columns).cast(datasets.Features(features)).to_parquet(path)
    return path


def made(source: str, template: str, task: Task, streaming: bool = False, kinds: Any = MEDIA_KINDS) -> ExampleDataset:
    return ExampleDataset(load_sources(source, template, streaming=streaming), task, 'any', frozenset(kinds))


def letters(example: Example, number: int = 0) -> str:
    return ''.join(map(chr, example.responses[number].ids.tolist()))


def test_an_image_column_is_a_pil_image(table: str, templates: Callable[[str], str]) -> None:
    dataset = made(table, templates('DocumentLike'), PreferenceTask(encode_group))
    assert [letters(dataset[0], number) for number in (0, 1)] == [
        'image(6, 4)|what?|better',
        'image(6, 4)|what?|worse',
    ]
    broken = dataset[1]
    assert isinstance(broken, Skipped) and 'image of 13 bytes is not an image' in broken.reason


def test_a_class_is_its_number_however_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / 'asked.py'
    file.write_text(
        'from align_anything.datasets import BaseFormatter, register_template\n\n\n'
        "@register_template('Asked')\nclass Asked(BaseFormatter):\n"
        '    def format_supervised_sample(self, raw_sample):\n'
        '        said = f\'{raw_sample["label"]} {raw_sample["labels"]} {str(raw_sample["label"])}\'\n'
        "        return [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': said}], {}\n"
    )
    import datasets

    classes = datasets.ClassLabel(names=['no', 'yes'])
    features = datasets.Features({'label': classes, 'labels': datasets.List(classes)})
    datasets.Dataset.from_dict({'label': [1], 'labels': [[0, 1]]}, features=features).to_parquet(tmp_path / 'a.parquet')
    found = made(str(tmp_path / 'a.parquet'), f'{file}:Asked', SupervisedTask(encode))[0]
    assert letters(found) == 'q|1 [0, 1] 1'


@pytest.mark.parametrize('streaming', [False, True])
def test_a_sound_column_is_an_array_at_the_rate_of_its_feature(
    table: str, templates: Callable[[str], str], streaming: bool
) -> None:
    seen = []

    def encode_prompt(conversation: Any) -> Any:
        seen.append(conversation[0]['content'])
        return encode(conversation[1:]).responses[0]

    dataset = made(table, templates('DocumentLike'), PromptTask(encode_prompt, 100), streaming)
    name, row = next(iter(dataset.sources[0].rows)) if streaming else ('', dataset.sources[0].rows[0])
    assert row['audio'].rate == 16000
    dataset.probe()
    audio, words = seen[0]
    assert words['text'] == 'what? (0.5 s)'
    # Handed on as it is stored, and decoded once as the model asks.
    assert (audio['audio'].rate, len(audio['audio'].samples)) == (8000, 4000)


def test_what_a_template_leaves_alone_goes_on_as_it_is_stored(table: str, templates: Callable[[str], str]) -> None:
    dataset = made(table, templates('Wide'), SupervisedTask(encode))
    stored = dataset.sources[0].rows[0]['image']
    assert isinstance(stored, MediaRecord)
    (source,), row = dataset.sources, dataset.sources[0].rows[0]
    view = dataset._view(source, 'row', row)
    (conversation,), meta = dataset._conversations(source, 'row', view, None)
    assert conversation[0]['content'][0]['image'].source == dict(stored)
    example = dataset[0]
    assert letters(example) == 'image(6, 4)|size?|6 x 4'
    assert pickle.loads(pickle.dumps(example.meta['row']))['question'] == 'what?'
    filtered = dataset[2]
    assert isinstance(filtered, Skipped) and filtered.filtered


def test_columns_that_nobody_reads_are_not_decoded(table: str, templates: Callable[[str], str]) -> None:
    """Not even a broken one; a template that copies the row reads all of it."""
    assert letters(made(table, templates('Blind'), SupervisedTask(encode))[1]) == 'what?|yes'
    view = RowView({'question': 'all', 'image': b'x'}, lambda value: 'read' if value == b'x' else value)
    assert view.unread() == {'question': 'all', 'image': b'x'}
    assert view['question'] == 'all' and view.unread() == {'image': b'x'}
    for copied in ({**view}, dict(view), view.copy(), dict(view.items())):
        assert copied == {'question': 'all', 'image': 'read'}
    assert list(view.values()) == ['all', 'read'] and view.get('absent', 3) == 3 and not view.unread()
    assert RowView({'a': 1}).pop('a') == 1 and RowView({}).pop('a', 5) == 5


def test_an_image_folder_gives_images_too(tmp_path: Path, templates: Callable[[str], str]) -> None:
    folder = tmp_path / 'pictures'
    folder.mkdir()
    png(folder / '1.png', (5, 4))
    write_rows(folder / 'metadata.jsonl', [{'file_name': '1.png'}])
    assert letters(made(str(folder), templates('Wide'), SupervisedTask(encode))[0]) == 'image(5, 4)|size?|5 x 4'


def test_the_templates_of_the_documents_word_for_word(
    tmp_path: Path, table: str, templates: Callable[[str], str]
) -> None:
    """Although this package has templates of the same names, which the names alone still mean."""
    rows = write_rows(tmp_path / 'alpaca.jsonl', [{'instruction': 'Add', 'input': '1', 'output': '2'}])
    assert letters(made(rows, templates('Alpaca'), SupervisedTask(encode))[0]) == 'Add 1|2'
    assert get_template('Alpaca').__module__ == 'align_anything.datasets.formatters.alpaca'
    pairs = made(table, templates('AA_TI2T'), PreferenceTask(encode_group))
    assert letters(pairs[0]) == 'image(6, 4)|what?|response_2'
    filtered = pairs[2]
    assert isinstance(filtered, Skipped) and filtered.filtered and 'gives no conversation' in filtered.reason
    (tmp_path / 'a.wav').write_bytes(sound(tone(0.5)))
    asked = write_rows(tmp_path / 'asked.jsonl', [{'prompt': 'Hear!', 'audio_path': 'a.wav'}])
    heard = []

    def encode_prompt(conversation: Any) -> Any:
        heard.append(conversation[1]['content'])
        return encode([conversation[0], {'role': 'user', 'content': conversation[1]['content'][1:]}]).responses[0]

    example = made(asked, templates('AA_TA2T'), PromptTask(encode_prompt, 100))[0]
    assert example.meta == {'audio_path': 'a.wav'} and text_of(example.conversation[:1]).startswith('You are a helpful')
    assert numpy.isclose(len(heard[0][0]['audio'].samples) / heard[0][0]['audio'].rate, 0.5)


def test_templates_for_diffusion_models_become_conversations(table: str, templates: Callable[[str], str]) -> None:
    drawn = made(table, templates('Canny'), SupervisedTask(encode))[0]
    assert letters(drawn) == 'what?|image(6, 4)' and drawn.meta['kept'] == 1
    pairs = made(table, templates('Picked'), PreferenceTask(encode_group))
    assert [letters(pairs[0], number) for number in (0, 1)] == ['what?|image(5, 4)', 'what?|image(6, 4)']
    assert pairs[2] == Skipped(f'{table}:3', 'both answers are the same, so there is nothing to prefer.')
    heard = made(table, templates('Heard'), SupervisedTask(encode)).formatted(0)
    assert heard[0][1]['content'][0]['audio'].source['sampling_rate'] == 16000


def test_their_other_hooks_follow(table: str, templates: Callable[[str], str]) -> None:
    pair, single = make_formatter(templates('Picked')), make_formatter(templates('Canny'))
    assert pair.hooks() == {SUPERVISED, PREFERENCE, PROMPT_ONLY, UNMATCHED, CHECK_EQUAL}
    assert single.hooks() == {SUPERVISED, PROMPT_ONLY, UNMATCHED}
    row = {'question': 'A fox', 'image': Image.new('RGB', (2, 2))}
    assert pair.format_prompt_only_sample(row) == ([{'role': 'user', 'content': 'A fox'}], {})
    other, _ = single.format_unmatched_supervised_sample(row, {**row, 'question': 'A dog'})
    assert other[0]['content'] == 'A fox' and other[1]['content'][0]['image'].size == (2, 2)
    with pytest.raises(DataError, match='has no format_preference_sample'):
        single.require_hook(PREFERENCE)
    with pytest.raises(SampleError, match=r"one medium, as 'image' or 'video' or 'audio', but holds 2"):
        make_formatter(templates('Doubled')).format_supervised_sample(row)
    with pytest.raises(SampleError, match='the prompt should be text but is list'):
        single.format_supervised_sample({**row, 'question': ['A fox']})


def test_templates_of_this_package_get_media_as_they_are_stored(table: str) -> None:
    (source,) = load_sources(table, 'RLAIFV')
    assert isinstance(source, Source)
    dataset = made(table, 'RLAIFV', SupervisedTask(encode))
    view = dataset._view(source, 'row', source.rows[0])
    assert view['image'] == source.rows[0]['image'] and isinstance(view['image'], MediaRecord)
