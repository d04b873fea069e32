"""A dataset through its template, before there is a model: `python -m align_anything.serve.ui.look PAIR ALGORITHM …`.

A process of its own, so that a template that is being written is read anew each time.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from align_anything.configs.redaction import without_secrets
from align_anything.configs.resolve import Resolved
from align_anything.core.errors import AlignAnythingError
from align_anything.core.files import atomic_write_text
from align_anything.core.types import MEDIA_KINDS, Conversation, Example, Skipped
from align_anything.datasets.dataset import ExampleDataset, Remembering
from align_anything.datasets.mixture import StreamMixture
from align_anything.datasets.skips import by_kind
from align_anything.reporting.html import render
from align_anything.trainers.launch import resolved_of
from align_anything.trainers.leaves import find_run
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.data import open_sources, unread_dataset

UNREAD = ('--model_name_or_path', 'unread', '--output_dir', 'unwritten')
"""In the place of settings that a run needs and a look at data does not."""
USER_ERROR = 2
SHOWN = (str, int, float, bool, list)
"""Values of further columns that are shown beside a row."""


def main(argv: Sequence[str]) -> None:
    """Writes the page: `PAIR ALGORITHM FILE FIRST ROWS`, then settings of data. What is wrong ends it with code 2."""
    pair_name, algorithm_name, file, first, rows, *settings = argv
    try:
        pair, algorithm = find_run(pair_name, algorithm_name)
        resolved = resolved_of(pair, algorithm, [*settings, *UNREAD], {})
        values = look(pair, resolved, int(first), int(rows))
    except AlignAnythingError as error:
        sys.stderr.write(f'{type(error).__name__}:\n{error}\n')
        sys.exit(USER_ERROR)
    atomic_write_text(file, render('rows.html.jinja', run=f'{pair_name} {algorithm_name}', **values))


def look(pair: Pair, resolved: Resolved, first: int, rows: int) -> dict[str, Any]:
    """Returns what the page shows of `rows` rows from the `first` on, counted from 1: of all sources together.

    Raises DataError as a run would.
    """
    cfgs = resolved.cfgs
    sources = open_sources(cfgs, pair.writes).training
    dataset = unread_dataset(sources, pair, resolved.algorithm, cfgs.data_cfgs.train_on)
    dataset.task = remembered = Remembering(dataset.task)
    total = None if sources[0].streamed else len(dataset)
    samples, skipped, kinds, turns = [], [], Counter(), Counter()
    for number, key in enumerate(islice(_keys(dataset, total), first - 1, first - 1 + rows), first):
        found = dataset[key]
        if isinstance(found, Skipped):
            skipped.append(Skipped(without_secrets(found.source), without_secrets(found.reason), found.filtered))
            continue
        samples.append(_sample(number, found, remembered.conversations))
        kinds.update(
            part['type']
            for conversation in remembered.conversations
            for turn in conversation
            for part in turn['content']
            if part['type'] in MEDIA_KINDS
        )
        turns[len(remembered.conversations[0])] += 1
    return {
        'summary': _summary(total, samples, skipped, kinds, turns),
        'reasons': by_kind(skipped),
        'skipped': skipped,
        'samples': samples,
    }


def _keys(dataset: ExampleDataset, total: int | None) -> Any:
    if total is not None:
        return range(total)
    streams = [source.rows for source in dataset.sources]
    return StreamMixture(streams, seed=0, shuffle=False, in_turn=True).rows(0)


def _sample(number: int, example: Example, conversations: list[Conversation]) -> dict[str, Any]:
    meta = {key: value for key, value in without_secrets(dict(example.meta)).items() if isinstance(value, SHOWN)}
    source = without_secrets(example.source)
    return {'number': number, 'source': source, 'conversations': conversations, 'meta': meta}


def _summary(
    total: int | None, samples: list[Any], skipped: list[Skipped], kinds: Counter[str], turns: Counter[int]
) -> dict[str, str]:
    filtered = sum(record.filtered for record in skipped)
    lines = {
        'rows': 'a stream' if total is None else f'{total:,}',
        'read here': f'{len(samples) + len(skipped):,}',
        'usable': f'{len(samples):,}',
        'skipped': f'{len(skipped) - filtered:,}',
        'filtered by the template': f'{filtered:,}',
        'media': ', '.join(f'{number:,} {kind}' for kind, number in sorted(kinds.items())) or 'none',
        'turns': ', '.join(f'{number:,} rows of {length}' for length, number in sorted(turns.items())) or 'none',
    }
    return lines


if __name__ == '__main__':
    main(sys.argv[1:])
