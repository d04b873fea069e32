"""Media in answers that a run would train, of models that do not write them: refused early, or left out and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.rm import RM
from align_anything.algorithms.sft import SFT
from align_anything.cli.leaves import find_run
from align_anything.cli.main import main
from align_anything.core.errors import DataError, ModelError
from align_anything.core.types import Example, Skipped
from align_anything.models.pretrained_model import load_spec
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.data import Sources, make_dataset, open_run, open_sources, probe
from tests.trainers.runs import IMAGE, lines, run, sft, write_rows

Tiny = Callable[..., Path]
ASKED = {'role': 'user', 'content': 'Draw a square.'}
DRAWN = {'role': 'assistant', 'content': [{'type': 'image', 'image': 'red.png'}, {'type': 'text', 'text': 'Here.'}]}
SAID, OTHER = ({'role': 'assistant', 'content': text} for text in ('I cannot.', 'A dog.'))
SHOWN = {'messages': [ASKED, DRAWN]}
HISTORY = {'messages': [ASKED, DRAWN, ASKED, SAID]}
PLAIN = {'messages': [ASKED, SAID]}
BETTER = {'chosen': [ASKED, DRAWN], 'rejected': [ASKED, SAID]}
WORSE = {'chosen': [ASKED, SAID], 'rejected': [ASKED, DRAWN]}
SHARED = {'chosen': HISTORY['messages'], 'rejected': [ASKED, DRAWN, ASKED, OTHER]}
OF_THE_PAIR = "is an answer to train and holds image media, but the pair 'text_image_to_text' writes no image"
OF_THE_FAMILY = "is an answer to train and holds image media, but models of type 'llava' write no image"
DRAWING = Pair('text_to_image', writes=frozenset({'image'}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the image that the rows name."""
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'red.png')
    return tmp_path


def words(folder: Path, model: Path | str, rows: list[dict[str, Any]], template: str) -> list[str]:
    """The command line of a run that sets no more than it must."""
    data = write_rows(folder / 'rows.jsonl', rows)
    needed = f'--model_name_or_path {model} --train_datasets {data} --train_template {template}'
    return [*needed.split(), '--output_dir', str(folder / 'run')]


def opened(folder: Path, algorithm: str, rows: list[dict[str, Any]], template: str) -> tuple[Sources, Algorithm]:
    """The data of a run, and its algorithm."""
    pair, kind = find_run('text_image_to_text', algorithm)
    resolved = settings_of(pair, kind, words(folder, 'm', rows, template), {})
    return open_sources(resolved.cfgs), resolved.algorithm


@pytest.mark.parametrize(
    ('algorithm', 'template', 'row', 'train_on'),
    [
        ('sft', 'Messages', SHOWN, 'all_assistant'),
        ('sft', 'Messages', SHOWN, 'last'),
        ('sft', 'Messages', HISTORY, 'all_assistant'),
        ('dpo', 'Preference', BETTER, 'all_assistant'),
        ('dpo', 'Preference', WORSE, 'last'),
        ('kto', 'Preference', BETTER, 'all_assistant'),
    ],
)
def test_a_pair_that_writes_text_stops_before_a_model_is_read(
    folder: Path, algorithm: str, template: str, row: dict[str, Any], train_on: str
) -> None:
    sources, kind = opened(folder, algorithm, [row] * 3, template)
    with pytest.raises(DataError, match=f'none of the first 3 rows(?s:.*)turn 1 {OF_THE_PAIR}'):
        probe(sources, IMAGE, kind, train_on)


@pytest.mark.parametrize(
    ('algorithm', 'template', 'row', 'train_on'),
    [
        ('sft', 'Messages', HISTORY, 'last'),
        ('dpo', 'Preference', SHARED, 'all_assistant'),
        # A model that scores answers reads them.
        ('rm', 'Preference', BETTER, 'all_assistant'),
        ('rm_score', 'Messages', SHOWN, 'all_assistant'),
    ],
)
def test_what_is_read_and_not_learnt_may_hold_media(
    folder: Path, tiny: Tiny, algorithm: str, template: str, row: dict[str, Any], train_on: str
) -> None:
    sources, kind = opened(folder, algorithm, [row], template)
    probe(sources, IMAGE, kind, train_on)
    spec = load_spec(str(tiny('llava')), model_max_length=256)
    example = make_dataset(sources.training, IMAGE, spec, kind, train_on)[0]
    assert isinstance(example, Example), example
    assert sum(piece.media_counts.get('image', 0) for piece in (example.prompt, *example.responses)) == 1


def test_the_family_decides_row_by_row(folder: Path, tiny: Tiny) -> None:
    rows = [PLAIN, SHOWN, HISTORY]
    sources, kind = opened(folder, 'sft', rows, 'Messages')
    probe(sources, IMAGE, kind, 'all_assistant')
    spec = load_spec(str(tiny('llava')), model_max_length=256)
    dataset = make_dataset(sources.training, IMAGE, spec, kind, 'all_assistant')
    good, *bad = (dataset[number] for number in range(3))
    assert isinstance(good, Example)
    for skipped in bad:
        assert isinstance(skipped, Skipped) and skipped.reason.startswith(f'turn 1 {OF_THE_FAMILY}: put'), skipped


def test_a_run_of_such_rows_ends_by_the_share_of_skipped_ones(folder: Path, tiny: Tiny) -> None:
    data = write_rows(folder / 'rows.jsonl', [PLAIN, *[SHOWN] * 3])
    (ended,) = run(sft(folder / 'run', tiny('llava'), data, template='Messages'), pair=IMAGE)
    assert ended.code == 2 and 'max_skipped_ratio' in ended.output and OF_THE_FAMILY in ended.output
    assert {record['source'] for record in lines(folder / 'run' / 'skipped_samples.jsonl')} <= {
        f'{data}:{number}' for number in (2, 3, 4)
    }


def test_inspect_shows_the_reason(folder: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    argv = words(folder, tiny('llava'), [PLAIN, SHOWN], 'Messages')
    with pytest.raises(SystemExit) as leaving:
        main(['inspect', 'text_image_to_text', 'sft', *argv, '--num_workers', '0'])
    assert leaving.value.code == 0
    assert 'models of type' in (folder / 'run' / 'inspect.html').read_text()
    assert 'write no image' in ' '.join(capsys.readouterr().out.split())


def test_a_pair_that_writes_images_needs_a_family_that_emits_them(folder: Path, tiny: Tiny) -> None:
    argv = words(folder, tiny('llava'), [SHOWN], 'Messages')
    cfgs = settings_of(DRAWING, SFT, argv, {}).cfgs
    probe(open_sources(cfgs), DRAWING, SFT(), 'all_assistant')
    with pytest.raises(ModelError, match="writes no image, which the pair 'text_to_image' is about"):
        open_run(cfgs, DRAWING, SFT())
    # What scores the answers of such a pair need not write them.
    open_run(settings_of(DRAWING, RM, words(folder, tiny('llava'), [BETTER], 'Preference'), {}).cfgs, DRAWING, RM())
