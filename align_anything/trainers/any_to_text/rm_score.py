"""Scores of a reward or cost model, `any_to_text`."""

from align_anything.algorithms.rm_score import RMScore
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, RMScore)


if __name__ == '__main__':
    main()
