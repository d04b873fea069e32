"""Kahneman-Tversky optimisation, `any_to_text`."""

from align_anything.algorithms.kto import KTO
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, KTO)


if __name__ == '__main__':
    main()
