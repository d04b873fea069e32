"""Runs that read text and write text."""

from align_anything.trainers.base.pair import Pair

PAIR = Pair('text_to_text')
