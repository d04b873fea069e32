"""Group relative policy optimisation, `text_to_text`."""

from align_anything.algorithms.grpo import GRPO
from align_anything.trainers.launch import launch
from align_anything.trainers.text_to_text import PAIR


def main() -> None:
    launch(PAIR, GRPO)


if __name__ == '__main__':
    main()
