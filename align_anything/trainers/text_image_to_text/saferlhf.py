"""Safe RLHF, `text_image_to_text`."""

from align_anything.algorithms.saferlhf import SafeRLHF
from align_anything.trainers.launch import launch
from align_anything.trainers.text_image_to_text import PAIR


def main() -> None:
    launch(PAIR, SafeRLHF)


if __name__ == '__main__':
    main()
