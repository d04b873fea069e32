"""`align-anything tokenize-media`: the codes of the media of a dataset, made once and written down as rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.algorithms.base import Algorithm
from align_anything.core.errors import DataError, SettingsError
from align_anything.core.files import atomic_write_text
from align_anything.core.logging import get_logger
from align_anything.core.types import Example, Skipped
from align_anything.trainers.launch import quieten_libraries, settings_of
from align_anything.trainers.pairs import Pair

logger = get_logger(__name__)


def _messages(example: Example) -> dict[str, Any]:
    (conversation,) = example.meta['conversations']
    return {**_beside(example), 'messages': _turns(conversation)}


def _pair_of(example: Example) -> dict[str, Any]:
    chosen, rejected = example.meta['conversations']
    return {**_beside(example), 'chosen': _turns(chosen), 'rejected': _turns(rejected)}


def _turns(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The turns, without the tools of the row that the first one bears."""
    return [{key: value for key, value in turn.items() if key != 'tools'} for turn in conversation]


def _beside(example: Example) -> dict[str, Any]:
    """All that a row's meta holds beside its turns, as far as JSON can: what rewards and losses read of it."""
    tools = example.meta['conversations'][0][0].get('tools')
    beside = {key: value for key, value in example.meta.items() if key != 'conversations' and _is_plain(value)}
    return beside | ({'tools': tools} if tools else {})


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return value is not None


WRITTEN: Mapping[str, Callable[[Example], dict[str, Any]]] = {
    'supervised': _messages,
    'preference': _pair_of,
    'prompt': _messages,
}
"""How rows are written down, by the task of the algorithm."""


def tokenize_media(pair: Pair, algorithm: type[Algorithm], argv: Sequence[str], out: Path) -> int:
    """Writes the rows that a run with the settings `argv` trains on into `out`, media as codes; returns how many.

    They are JSON lines for the template `Messages`, `Prompts` where golden answers or other columns go with prompts, or
    `Preference` where rows are pairs. Rows that cannot be used are
    left out, counted and listed. Media that stand in prompts as features of a tower stay media, as data URIs.

    Raises:
        SettingsError, DataError, ModelError: as the run would, before it loads a model; for a stream, and where the
            model has no codes.
    """
    if out.is_dir():
        raise SettingsError([f'tokenize-media: --out {out} is a folder; name a file.'])
    resolved = settings_of(pair, algorithm, argv, os.environ)
    quieten_libraries()
    from align_anything.datasets.skips import told_once
    from align_anything.trainers.runs.composing import with_composed
    from align_anything.trainers.runs.data import open_run, probed
    from align_anything.trainers.runs.media_codes import RowsTask, prepare_codes

    resolved = with_composed(resolved)
    cfgs, own = resolved.cfgs, resolved.algorithm
    if cfgs.data_cfgs.streaming or own.task not in WRITTEN:
        of_stream = 'a stream is not written down; leave out data_cfgs.streaming.'
        of_task = f'it writes rows of {", ".join(WRITTEN)} data: choose sft, dpo or grpo, not {own.name}.'
        raise SettingsError([f'tokenize-media: {of_stream if cfgs.data_cfgs.streaming else of_task}'])
    sources, spec = open_run(cfgs, pair, own)
    if spec.codes is None:
        raise SettingsError(
            [f'model_cfgs.model_name_or_path: {cfgs.model_cfgs.model_name_or_path} has no codes of media.']
        )
    dataset = probed(sources.training, cfgs, pair, spec, own)
    prepare_codes(cfgs, spec, [dataset])
    rows = dataset.of_task(RowsTask(dataset.task, spec.codes))
    found = [rows[number] for number in range(len(rows))]
    skipped = [row for row in found if isinstance(row, Skipped)]
    kept = [WRITTEN[own.task](row) for row in found if isinstance(row, Example)]
    if skipped:
        logger.warning('%d of %d rows are left out:\n%s', len(skipped), len(found), told_once(skipped))
    if not kept:
        raise DataError('not one row can be used.')
    atomic_write_text(out, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in kept))
    return len(kept)
