"""Kahneman-Tversky optimisation, `text_to_text`."""

from align_anything.algorithms.kto import KTO
from align_anything.trainers.launch import launch
from align_anything.trainers.text_to_text import PAIR


def main() -> None:
    launch(PAIR, KTO)


if __name__ == '__main__':
    main()
