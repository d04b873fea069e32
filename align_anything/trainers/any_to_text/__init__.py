"""Runs that read any mix of text, images, videos and sounds and write text."""

from align_anything.trainers.pairs import Pair

PAIR = Pair('any_to_text', frozenset({'image', 'video', 'audio'}), needs_all=False)
