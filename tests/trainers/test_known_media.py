"""Runs on prepared media decode none of them: pictures, clips, sounds and codes; what changed is left out as ever."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.cli.leaves import find_run
from align_anything.testing.emitting import write_digit_rows
from tests.datasets.clips import clip, sound, tone
from tests.harness.pairwise import first_of
from tests.trainers.denoising import PICTURES, metrics, offline
from tests.trainers.runs import Hook, lines, sft, succeed, write_rows
from tests.trainers.test_bad_rows import listed
from tests.trainers.test_editing_runs import PAIRED, edits

Tiny = Callable[..., Path]
Argv = Callable[..., list[str]]
MESSAGES = {'template': 'Messages'}


def digits(folder: Path, model: Callable[[str], Path]) -> tuple[Argv, Path, dict[str, Any]]:
    return offline, write_digit_rows(folder, 6), {'aspect_buckets': True}


def drawn(folder: Path, model: Callable[[str], Path]) -> tuple[Argv, Path, dict[str, Any]]:
    return sft, write_digit_rows(folder, 6), {**MESSAGES, 'train_template_kwargs': '{images: ""}'}


def edited(folder: Path, model: Callable[[str], Path]) -> tuple[Argv, Path, dict[str, Any]]:
    return offline, write_rows(folder / 'rows.jsonl', edits(folder)), PAIRED


def shown(folder: Path, kind: str, suffix: str, contents: list[bytes], more: dict[str, Any]) -> Any:
    rows = []
    for number, content in enumerate(contents):
        (folder / f'{number}.{suffix}').write_bytes(content)
        answer = [{'type': kind, kind: f'{number}.{suffix}'}]
        asked = {'role': 'user', 'content': f'number {number}'}
        rows.append({'messages': [asked, {'role': 'assistant', 'content': answer}]})
    return offline, write_rows(folder / 'rows.jsonl', rows), {**MESSAGES, 'train_template_kwargs': '{}', **more}


def filmed(folder: Path, model: Callable[[str], Path]) -> tuple[Argv, Path, dict[str, Any]]:
    clips = [clip([(number + 1) * frame for frame in range(9)]) for number in range(3)]
    return shown(folder, 'video', 'mp4', clips, {'num_frames': 9, 'resolution': 64})


def sung(folder: Path, model: Callable[[str], Path]) -> tuple[Argv, Path, dict[str, Any]]:
    return shown(folder, 'audio', 'wav', [sound(tone(1, hertz=200.0 * number)) for number in (1, 2, 3)], {})


CASES: dict[str, tuple[str, str, str, Any]] = {
    'pictures': ('text_to_image', 'sft', 'sd3', digits),
    'pairs of edits': ('text_image_to_image', 'dpo', 'flux_kontext', edited),
    'clips': ('text_to_video', 'sft', 'ltx', filmed),
    'sounds': ('text_to_audio', 'sft', 'ace_step', sung),
    'codes': ('text_to_image', 'sft', 'drawing', drawn),
}


def counted(log: Path, everything: bool = False) -> Hook:
    """Writes the kind of each medium that is decoded, and when media have been prepared.

    With `everything` nothing that is known is made use of.
    """

    def before(rank: int) -> None:
        from align_anything.datasets.media import decoding, known
        from align_anything.trainers.runs import prepare

        def note(text: str) -> None:
            with open(log, 'a') as file:
                file.write(f'{text}\n')

        for kind, decoder in list(decoding.DECODERS.items()):
            decoding.DECODERS[kind] = lambda media, decoder=decoder: [note(media.kind), decoder(media)][1]
        if everything:
            known.Lookup.__call__ = lambda self, media, decode: decode()
        made = prepare._write

        def write(*given: Any) -> None:
            made(*given)
            note('prepared')

        prepare._write = write

    return before


def stages(log: Path) -> tuple[list[str], list[str]]:
    """The kinds that were decoded until all was prepared, and after that."""
    found = log.read_text().split()
    log.unlink()
    last = len(found) - found[::-1].index('prepared')
    return [kind for kind in found[:last] if kind != 'prepared'], found[last:]


@pytest.mark.parametrize('name', first_of(CASES, 'pictures', 'clips', 'sounds', 'codes'))
def test_no_medium_is_decoded_twice(name: str, tiny: Tiny, emitting: Tiny, tmp_path: Path) -> None:
    pair, algorithm, family, rows_of = CASES[name]
    model = emitting(family) if family == 'drawing' else tiny(family)
    (tmp_path / 'rows').mkdir()
    argv, rows, how = rows_of(tmp_path / 'rows', model)
    kept = {'media_code_dir' if family == 'drawing' else 'prepared_dir': tmp_path / 'kept', 'media_cache_mb': 0}
    chosen, log = find_run(pair, algorithm), tmp_path / 'log'

    def trained(out: str, everything: bool = False) -> tuple[list[str], list[str]]:
        command = argv(tmp_path / out, model, rows, **{**how, **kept})
        succeed(command, 1, chosen[0], counted(log, everything), chosen[1])
        return stages(log)

    preparing, training = trained('one')
    assert len(set(preparing)) == 1 and len(preparing) >= 4 and training == []
    # What is left is the first row, which is looked at before anything is opened.
    again, training = trained('two')
    assert len(again) < len(preparing) / 2 and training == []
    losses = metrics(tmp_path / 'one', 'train/loss')
    assert losses and losses == metrics(tmp_path / 'two', 'train/loss')
    if family in ('sd3', 'flux_kontext'):
        _, training = trained('three', everything=True)
        assert len(training) >= len(preparing) - len(again)
        assert losses == metrics(tmp_path / 'three', 'train/loss')


def draw(path: Path, colour: str) -> None:
    Image.new('RGB', (40, 40), colour).save(path)


@pytest.mark.parametrize('family', ['sd3', 'drawing'])
def test_a_file_that_changed_is_left_out_and_one_that_moved_is_found(
    family: str, tiny: Tiny, emitting: Tiny, tmp_path: Path
) -> None:
    model, setting = (emitting(family), 'media_code_dir') if family == 'drawing' else (tiny(family), 'prepared_dir')
    argv, rows = (sft if family == 'drawing' else offline), write_digit_rows(tmp_path / 'rows', 6)
    how = {**MESSAGES, 'train_template_kwargs': '{images: ""}', setting: tmp_path / 'kept'}
    how |= {'max_skipped_ratio': 0.9, 'media_cache_mb': 0}
    log, changed = tmp_path / 'log', rows.parent / lines(rows)[2]['picture']
    succeed(argv(tmp_path / 'one', model, rows, **how), 1, PICTURES, counted(log))
    stages(log)
    moved = shutil.copytree(rows.parent, tmp_path / 'moved') / rows.name
    told = succeed(argv(tmp_path / 'two', model, moved, **how), 1, PICTURES, counted(log))
    again, training = stages(log)
    assert ': 0 entries made' in told and len(again) <= 2 and training == []

    def spoilt(rank: int) -> None:
        from align_anything.trainers.runs import prepare

        counted(log)(rank)
        made = prepare._write

        def write(*given: Any) -> None:
            made(*given)
            status = changed.stat()
            with Image.open(changed) as image:
                image.convert('RGB').rotate(180).save(changed)
            os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))

        prepare._write = write

    succeed(argv(tmp_path / 'three', model, rows, **how), 1, PICTURES, spoilt)
    _, training = stages(log)
    (reason,) = listed(tmp_path / 'three').values()
    wanted = 'there are no codes of an image' if family == 'drawing' else 'nothing that the encoders made of a medium'
    assert wanted in reason and 'changed since' in reason
    assert training == ['image'] and sum(metrics(tmp_path / 'three', 'train/samples')) == 5


def test_pictures_in_rows_and_files_side_by_side(tiny: Tiny, tmp_path: Path) -> None:
    draw(tmp_path / 'red.png', 'red')
    (tmp_path / 'own.py').write_text(OWN)
    rows = write_rows(tmp_path / 'rows.jsonl', [{'ask': f'number {number}', 'at': number} for number in range(4)])
    how = {'template': f'{tmp_path}/own.py:Mixed', 'epochs': 2, 'media_cache_mb': 0}
    log = tmp_path / 'log'
    succeed(offline(tmp_path / 'run', tiny('sd3'), rows, **how), 1, PICTURES, counted(log))
    _, training = stages(log)
    # Two of four are arrays, in each of two epochs.
    assert training == ['image'] * 4 and sum(metrics(tmp_path / 'run', 'train/samples')) == 8


OWN = """
import numpy

from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.template_registry import register_template

@register_template('Mixed')
class Mixed(BaseFormatter):
    def format_supervised_sample(self, raw_sample):
        number = raw_sample['at']
        picture = 'red.png' if number % 2 else numpy.full((40, 40, 3), 50 * number, numpy.uint8)
        asked = {'role': 'user', 'content': raw_sample['ask']}
        answer = {'role': 'assistant', 'content': [{'type': 'image', 'image': picture}]}
        return [asked, answer], {}
"""
