"""Runs that read text and sounds and write text."""

from align_anything.trainers.pairs import Pair

PAIR = Pair('text_audio_to_text', frozenset({'audio'}))
