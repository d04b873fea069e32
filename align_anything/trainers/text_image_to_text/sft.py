"""Supervised fine-tuning, `text_image_to_text`."""

from align_anything.algorithms.sft import SFT
from align_anything.trainers.launch import launch
from align_anything.trainers.text_image_to_text import PAIR


def main() -> None:
    launch(PAIR, SFT)


if __name__ == '__main__':
    main()
