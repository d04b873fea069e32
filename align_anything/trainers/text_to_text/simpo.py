"""Simple preference optimisation, `text_to_text`."""

from align_anything.algorithms.simpo import SimPO
from align_anything.trainers.launch import launch
from align_anything.trainers.text_to_text import PAIR


def main() -> None:
    launch(PAIR, SimPO)


if __name__ == '__main__':
    main()
