"""Group relative policy optimisation, `any_to_text`."""

from align_anything.algorithms.grpo import GRPO
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, GRPO)


if __name__ == '__main__':
    main()
