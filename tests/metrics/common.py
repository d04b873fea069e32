"""Folders as `generate` leaves them, made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.datasets.media.writing import files_of
from align_anything.metrics.samples import Samples, read_samples

KINDS = {'PngImageFile': 'image', 'Image': 'image', 'Audio': 'audio', 'Video': 'video'}


def folder_of(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes `generations.jsonl` of rows with `says` (texts), and `prompt`, `media`, `scores`, `answer`, `meta`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        responses = []
        for which, text in enumerate(row.get('says', [''])):
            response: dict[str, Any] = {'text': text, 'finish_reason': 'stop', 'units': len(text.split())}
            if 'media' in row:
                response['media'] = written(folder, number, which, row['media'])
            if 'scores' in row:
                response |= {'scores': {'model': row['scores'][which]}, 'score': row['scores'][which]}
            responses.append(response)
        line = {
            'row': number,
            'source': f'rows.jsonl:{number + 1}',
            'messages': [{'role': 'user', 'content': row.get('prompt', f'question {number}')}],
            'responses': responses,
        }
        line |= {'reference_answer': row['answer']} if 'answer' in row else {}
        line |= {'meta': row['meta']} if 'meta' in row else {}
        lines.append(json.dumps(line) + '\n')
    (folder / 'generations.jsonl').write_text(''.join(lines))
    return folder


def written(folder: Path, row: int, which: int, media: Sequence[Any]) -> list[str]:
    names = []
    for place, medium in enumerate(media, 1):
        for suffix, content in files_of(KINDS[type(medium).__name__], medium):
            names.append(f'media/{row:08d}/response_{which}_{place}{suffix}')
            (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / names[-1]).write_bytes(content)
    return names


def samples_of(folder: Path, *rows: Mapping[str, Any]) -> Samples:
    return read_samples(folder_of(folder, rows))
