"""Which template reads rows that come without one: of runs whose answers are media, by the columns of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Any, NamedTuple

from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import ACTION, MEDIA_KINDS, MediaKind
from align_anything.datasets.formatters.columns import Row, filled
from align_anything.datasets.rows import InOrder, Rows, RowStream
from align_anything.datasets.unread import looks_like

LOOKED_AT = 8
"""Rows that are looked at, since a column may be null in some."""
TEXTS = ('instruction', 'prompt', 'question', 'caption', 'text')
"""Columns of what a medium is asked for with, that `Instruction` and `Preference` find."""
PROMPTS = (*TEXTS, 'Prompt', 'Prompts', 'prompt_text', 'prompt_en')
"""Columns of prompts that come without media, such as those of PartiPrompts, DrawBench and VBench."""


SHOWN = {'cond_image'}
"""Columns of images that others are made from."""


class Recognised(NamedTuple):
    """A template and its options."""

    template: str
    options: Mapping[str, Any] = {}

    def __str__(self) -> str:
        told = ', '.join(f'{key}: {value}' for key, value in self.options.items())
        return f'{self.template} {{{told}}}' if told else self.template


DATASETS: tuple[tuple[Set[str], MediaKind, Recognised], ...] = (
    ({'caption', 'jpg_0', 'jpg_1', 'label_0', 'label_1'}, 'image', Recognised('Pickapic')),
    ({'prompt', 'img_better', 'img_worse'}, 'image', Recognised('ImageRewardDB')),
    ({'prompt', 'file_path', 'human_preference'}, 'image', Recognised('HPDv2')),
    ({'prompt', 'image_path', 'rank'}, 'image', Recognised('HPDv2')),
    ({'prompt', 'path1', 'path2'}, 'image', Recognised('HPDv3')),
    ({'prompt_text', 'video_0', 'video_1'}, 'video', Recognised('SafeSora')),
    ({'prompt_text', 'video_path', 'video_labels'}, 'video', Recognised('SafeSora_Label')),
    ({'videoid', 'name'}, 'video', Recognised('Webvid')),
    ({'file_name', 'caption_1'}, 'audio', Recognised('Clotho')),
    ({'id', 'caption', 'duration'}, 'audio', Recognised('WavCaps')),
    *(
        (
            {asked, shown, answer},
            'image',
            Recognised('Instruction', {'answers': 'image', 'prompt': asked, 'images': shown, 'response': answer}),
        )
        for asked, shown, answer in (
            ('edit_prompt', 'input_image', 'edited_image'),
            ('edit_prompt', 'original_image', 'edited_image'),
            ('instruction', 'source_img', 'target_img'),
            ('instruction', 'source', 'target'),
            ('prompt', *SHOWN, 'image'),
        )
    ),
)
"""Columns of datasets and the kind of their answers, with what reads them."""

RECORDED: tuple[tuple[Set[str], str], ...] = (
    ({'lerobot', 'episode'}, 'LeRobot'),
    ({'sub_house', 'sensors'}, 'Chores'),
    ({'hdf5', 'episode'}, 'Libero'),
    ({'steps'}, 'Steps'),
    ({'better', 'worse'}, 'Steps'),
    ({'messages'}, 'Messages'),
)
"""Columns of recorded episodes with what reads them."""


def recognised(source: str, rows: Rows | RowStream, streamed: bool, writes: Set[MediaKind]) -> Recognised:
    """Returns the template that reads the rows of a source for answers of a kind that is in `writes`.

    Raises:
        DataError: the columns are none that are known, or the answers are of another kind; it lists what is known.
    """
    if ACTION in writes:
        return _recorded(source, _first(rows, streamed))
    if not writes:
        raise DataError(f"'{source}': no template is given. Name one, such as Messages for chat rows.")
    row = _first(rows, streamed)
    usual = next(filter(None, (_usual(row, kind) for kind in MEDIA_KINDS if kind in writes)), None)
    # An image that is made from another one has the usual name too.
    edited = _dataset(row, writes) if SHOWN <= row.keys() else None
    known = edited or usual or _dataset(row, writes) or _without_media(row)
    if known is None:
        columns = ', '.join(map(str, row)) or 'none'
        raise DataError(
            f"'{source}': no template is given, and its columns ({columns}) are none that are known without one. "
            f'{_told(writes)} Name a template (train_template, eval_template), which maps columns of other names.'
        )
    return known


def _first(rows: Rows | RowStream, streamed: bool) -> dict[str, Any]:
    """The columns of the first rows, each with a value that is not null where one of them has such."""
    row: dict[str, Any] = {}
    for _, read in islice(rows if streamed else InOrder(rows), LOOKED_AT):
        if not isinstance(read, SampleError):
            row = {**read, **{name: value for name, value in row.items() if value is not None}}
    return row


def _recorded(source: str, row: Row) -> Recognised:
    """What reads the rows of recorded episodes. Raises DataError for columns that none has."""
    template = next((template for columns, template in RECORDED if columns <= row.keys()), None)
    if template == 'Libero' and not row['episode']:
        template = 'Aloha'
    if template is None:
        known = '; '.join(f'{", ".join(sorted(columns))} ({template})' for columns, template in RECORDED[-3:])
        raise DataError(
            f"'{source}': no template is given, and its columns ({', '.join(map(str, row)) or 'none'}) are those of no "
            f'recording that is known. Known are folders of CHORES and LeRobotDataset, HDF5, and the columns {known}. '
            'Name a template (train_template, eval_template).'
        )
    return Recognised(template)


def _dataset(row: Row, writes: Set[MediaKind]) -> Recognised | None:
    return next((found for columns, kind, found in DATASETS if columns <= row.keys() and kind in writes), None)


def _usual(row: Row, kind: MediaKind) -> Recognised | None:
    """What reads a text with a medium, or with a better and a worse one, in columns of the usual names."""
    if not any(filled(row, name) for name in TEXTS):
        return None
    for better, worse in ((f'better_{kind}', f'worse_{kind}'), ('chosen', 'rejected'), ('better', 'worse')):
        if filled(row, better) and filled(row, worse) and (kind in better or looks_like(row[better]) == kind):
            return Recognised('Preference', {'answers': kind})
    # A record of the codes of a medium looks like nothing.
    return Recognised('Instruction', {'answers': kind}) if filled(row, kind) else None


def _without_media(row: Row) -> Recognised | None:
    """What reads prompts alone, whose other columns are handed on to rewards."""
    name = next((name for name in PROMPTS if filled(row, name)), None)
    if name is None or any(looks_like(value) for value in row.values()) or {'messages', 'conversations'} & row.keys():
        return None
    return Recognised('Prompts', {'prompt': name, 'keep_columns': True})


def _told(writes: Set[MediaKind]) -> str:
    kinds = [kind for kind in MEDIA_KINDS if kind in writes]
    texts, media = _either(f"'{name}'" for name in TEXTS), _either(f"'{kind}'" for kind in kinds)
    pairs = _either(f"'better_{kind}' and 'worse_{kind}'" for kind in kinds)
    datasets = '; '.join(f'{", ".join(sorted(columns))}' for columns, kind, _ in DATASETS if kind in writes)
    return (
        f"Known are a text ({texts}) with {media}, a text with {pairs} (or 'chosen' and 'rejected'), prompts alone, "
        f'and the columns of datasets: {datasets}.'
    )


def _either(words: Iterable[str]) -> str:
    return ' or '.join(words)
