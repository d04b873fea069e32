"""Runs that read text and write text."""

from align_anything.trainers.pairs import Pair

PAIR = Pair('text_to_text')
