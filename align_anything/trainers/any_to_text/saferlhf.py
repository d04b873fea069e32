"""Safe RLHF, `any_to_text`."""

from align_anything.algorithms.saferlhf import SafeRLHF
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, SafeRLHF)


if __name__ == '__main__':
    main()
