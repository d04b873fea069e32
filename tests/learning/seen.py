"""Rewards of one's own for pictures and sounds, as a user may write them."""

from __future__ import annotations

from collections.abc import Sequence

from align_anything.rewards.base import Completion, register_reward
from align_anything.testing.emitting import heard, read_digits
from align_anything.testing.moving import direction_of
from align_anything.testing.shapes import colour_of
from align_anything.testing.tones import pitch_of


@register_reward('drawn_digit')
def drawn_digit(completions: Sequence[Completion]) -> list[float]:
    """How probable the digit asked for is in the picture, by a classifier that learned the even half of the digits."""
    pictures = [part['image'] for completion in completions for part in completion.message['content']]
    wanted = [completion.meta['digit'] for completion in completions]
    return [float(seen[digit]) for seen, digit in zip(read_digits(pictures), wanted, strict=True)]


@register_reward('sung_notes')
def sung_notes(completions: Sequence[Completion]) -> list[float]:
    """The share of the notes asked for that are heard where they should be; none in a melody that does not end."""
    return [share(heard_in(completion), completion.meta['notes']) for completion in completions]


def heard_in(completion: Completion) -> list[int]:
    """The notes of a response, -1 in place of each where it holds no whole melody."""
    found = [heard(part['audio']) for part in completion.message['content'] if part['type'] == 'audio']
    return found[0] if found else [-1] * len(completion.meta['notes'])


def share(found: Sequence[object], wanted: Sequence[object]) -> float:
    """The share of what is as wanted."""
    return sum(one == other for one, other in zip(found, wanted, strict=True)) / len(wanted)


@register_reward('shown_word')
def shown_word(completions: Sequence[Completion]) -> list[float]:
    """1 for a clip of a ball that moves as its row wants, and for a tone that is as high."""
    parts = [part for completion in completions for part in completion.message['content']]
    words = [
        direction_of(part['video'].frames) if part['type'] == 'video' else pitch_of(part['audio'].samples)
        for part in parts
    ]
    return [float(word == item.meta['word']) for word, item in zip(words, completions, strict=True)]


@register_reward('worth')
def worth(completions: Sequence[Completion]) -> list[float]:
    """What the row says that the colour of the painted shape is worth; a colour that it does not name is worth none."""
    pictures = [part['image'] for completion in completions for part in completion.message['content']]
    return [
        completion.meta['worth'].get(colour_of(picture), 0.0)
        for completion, picture in zip(completions, pictures, strict=True)
    ]
