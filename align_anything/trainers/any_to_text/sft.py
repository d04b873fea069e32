"""Supervised fine-tuning, `any_to_text`."""

from align_anything.algorithms.sft import SFT
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, SFT)


if __name__ == '__main__':
    main()
