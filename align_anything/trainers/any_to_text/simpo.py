"""Simple preference optimisation, `any_to_text`."""

from align_anything.algorithms.simpo import SimPO
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, SimPO)


if __name__ == '__main__':
    main()
