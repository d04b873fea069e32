"""Direct preference optimisation, `any_to_text`."""

from align_anything.algorithms.dpo import DPO
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, DPO)


if __name__ == '__main__':
    main()
