"""Reward modelling, `any_to_text`."""

from align_anything.algorithms.rm import RM
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, RM)


if __name__ == '__main__':
    main()
