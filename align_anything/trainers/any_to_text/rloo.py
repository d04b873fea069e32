"""REINFORCE leave-one-out, `any_to_text`."""

from align_anything.algorithms.rloo import RLOO
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, RLOO)


if __name__ == '__main__':
    main()
