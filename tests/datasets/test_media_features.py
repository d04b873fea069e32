"""Audio and Video columns of Hugging Face datasets reach decoding as their bytes, in tables and in streams."""

from __future__ import annotations

import pytest

from align_anything.core.types import Audio, Video
from align_anything.datasets.media import decode, make_media
from align_anything.datasets.sources import load_rows, load_stream
from tests.datasets.clips import clip, sound, tone


@pytest.fixture(scope='module')
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    import datasets

    path = tmp_path_factory.mktemp('table')
    heard, seen = sound(tone(1.0, 8000), 8000), clip([number * 10 for number in range(20)])
    (path / 'beside.wav').write_bytes(heard)
    rows = {
        'audio': [{'bytes': heard, 'path': 'a.wav'}, {'bytes': None, 'path': str(path / 'beside.wav')}],
        'video': [{'bytes': seen, 'path': 'a.mp4'}] * 2,
        'clips': [[{'bytes': seen, 'path': None}], []],
    }
    features = datasets.Features(
        {
            'audio': datasets.Audio(sampling_rate=16000),
            'video': datasets.Video(),
            'clips': datasets.List(datasets.Video()),
        }
    )
    # Cast, not encoded: encoding asks for a package that reading does without.
    datasets.Dataset.from_dict(rows).cast(features).to_parquet(str(path / 'rows.parquet'))
    return str(path / 'rows.parquet')


@pytest.mark.parametrize('streaming', [False, True])
def test_columns_are_decoded_by_us_and_not_by_the_dataset(table: str, streaming: bool) -> None:
    opened = load_rows(table)
    rows = [row for _, row in load_stream(table)] if streaming else [opened[index] for index in range(len(opened))]
    for row in rows:
        heard = decode(make_media('audio', row['audio'], options={'rate': 16000}))
        assert isinstance(heard, Audio) and (heard.rate, len(heard.samples)) == (16000, 16000)
        shown = decode(make_media('video', row['video']))
        assert isinstance(shown, Video) and shown.frames.shape == (4, 48, 64, 3)
    assert len(decode(make_media('video', rows[0]['clips'][0])).frames) == 4 and rows[1]['clips'] == []
