"""Online DPO, `any_to_text`."""

from align_anything.algorithms.online_dpo import OnlineDPO
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, OnlineDPO)


if __name__ == '__main__':
    main()
