"""Counts and histograms that the page and the terminal both show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from align_anything.cli.inspection.rows import RowSize, SetSurvey, Survey
from align_anything.datasets.action_statistics import Seen

BINS = 12


@dataclass(frozen=True)
class Bin:
    """Rows whose number of tokens is `low` to `high`, both included."""

    low: int
    high: int
    rows: int

    @property
    def label(self) -> str:
        """The range as a person would write it."""
        return str(self.low) if self.low == self.high else f'{self.low}–{self.high}'


class Share(NamedTuple):
    """Rows, or steps, of one kind."""

    label: str
    rows: int


def histogram(values: list[int], bins: int = BINS) -> list[Bin]:
    """Returns up to `bins` bins of equal width, the last cut at the largest value; none for no values."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = -(-(high - low + 1) // bins)
    counts = Counter((value - low) // width for value in values)
    return [Bin(low + n * width, min(low + (n + 1) * width - 1, high), counts[n]) for n in range(max(counts) + 1)]


def actions_of(seen: Seen) -> dict[str, list[Share]]:
    """Returns how often each named action is done, and of numbers how they lie in each dimension, by their titles."""
    charts = {'steps by action': [Share(*pair) for pair in seen.names.most_common()]} if seen.names else {}
    known = [*seen.told.get('dimensions', ())]
    for dataset, running in sorted(seen.values.items()):
        names = known[0] if len(known) == 1 else [f'x{number}' for number in range(len(running.counted))]
        for name, counted in zip(names, running.counted, strict=False):
            title = f"'{name}' of actions" if len(seen.values) == 1 else f"'{name}' of actions in {dataset}"
            charts[title] = [Share(f'{low:.3g} to {high:.3g}', rows) for low, high, rows in counted.histogram(BINS)]
    return charts


def histograms(survey: Survey, found: SetSurvey) -> dict[str, Sequence[Bin | Share]]:
    """Returns the histograms of a set by their titles; media only where there are some."""
    done = {} if found.acted is None else actions_of(found.acted)
    if survey.denoises:
        return done | {'bytes of a prompt': histogram([size.tokens - size.trained for size in found.sizes])}
    figures = {
        'tokens of a row': histogram([size.tokens for size in found.sizes]),
        'trained tokens of a row': histogram([size.trained for size in found.sizes]),
    }
    if any(size.media_tokens for size in found.sizes):
        figures['media tokens of a row'] = histogram([size.media_tokens for size in found.sizes])
    return figures | done


def summary(survey: Survey, found: SetSurvey) -> dict[str, str]:
    """Returns the numbers of a set as words, by what they count."""
    tokens = sum(size.tokens for size in found.sizes)
    trained = sum(size.trained for size in found.sizes)
    media = sum(size.media_tokens for size in found.sizes)
    items = sum((Counter(size.media) for size in found.sizes), Counter())
    limit = survey.spec.max_length
    shapes = Counter(shape for size in found.sizes for shape in size.latents)
    filtered = sum(record.filtered for record in found.skipped)
    truncated = sum(size.truncated for size in found.sizes)
    lines = {
        'rows': 'a stream' if found.total is None else f'{found.total:,}',
        'read': f'{found.read:,}',
        'usable': f'{len(found.sizes):,}',
        'skipped': f'{len(found.skipped):,}{_share(len(found.skipped), found.read)}',
        'media': ', '.join(f'{number:,} {kind}' for kind, number in sorted(items.items())) or 'none',
    }
    if survey.denoises:
        lines['draws'] = f'{trained:,}'
        lines['latents'] = ', '.join(f'{number:,} of {shape}' for shape, number in shapes.most_common()) or 'none'
    else:
        lines |= {
            'tokens': f'{tokens:,}',
            'trained tokens': f'{trained:,}{_share(trained, tokens)}',
            'media tokens': f'{media:,}{_share(media, tokens)}',
            'longest row': f'{max((size.tokens for size in found.sizes), default=0):,} tokens of {limit:,}',
        }
    if found.acted is not None:
        lines['actions'] = found.acted.written()
    if filtered:
        lines['filtered among them'] = f'{filtered:,} that the template or data_cfgs.drop_truncated leaves out'
    if truncated:
        lines['truncated rows'] = (
            f'{truncated:,}, longer than model_cfgs.model_max_length{_share(truncated, found.read)}'
        )
    return lines


def note_on(size: RowSize, survey: Survey) -> str:
    """Returns what a row takes, in a few words."""
    if survey.denoises:
        return f'{size.trained} draws, latents {", ".join(size.latents) or "none"}'
    media = f', {size.media_tokens} of media' if size.media_tokens else ''
    return f'{size.tokens} tokens, {size.trained} trained{media}'


def stops(survey: Survey, found: SetSurvey) -> str:
    """Returns a sentence when so many rows are skipped that the run would stop, else nothing."""
    failed = sum(not record.filtered for record in found.skipped)
    if failed <= survey.max_skipped_ratio * found.read:
        return ''
    return (
        f'{failed} of {found.read} rows would be skipped; data_cfgs.max_skipped_ratio '
        f'{survey.max_skipped_ratio} allows fewer, so the run would stop.'
    )


def _share(count: int, total: int) -> str:
    return f' ({count / total:.1%})' if total else ''
