"""Runs that read text and videos and write text."""

from align_anything.trainers.pairs import Pair

PAIR = Pair('text_video_to_text', frozenset({'video'}))
