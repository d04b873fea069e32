"""Runs that read text and images and write text."""

from align_anything.trainers.pairs import Pair

PAIR = Pair('text_image_to_text', frozenset({'image'}))
