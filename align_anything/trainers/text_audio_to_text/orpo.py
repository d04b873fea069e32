"""Odds ratio preference optimisation, `text_audio_to_text`."""

from align_anything.algorithms.orpo import ORPO
from align_anything.trainers.launch import launch
from align_anything.trainers.text_audio_to_text import PAIR


def main() -> None:
    launch(PAIR, ORPO)


if __name__ == '__main__':
    main()
