"""Reward modelling, `text_image_to_text`."""

from align_anything.algorithms.rm import RM
from align_anything.trainers.launch import launch
from align_anything.trainers.text_image_to_text import PAIR


def main() -> None:
    launch(PAIR, RM)


if __name__ == '__main__':
    main()
