"""Cost modelling, `text_image_to_text`."""

from align_anything.algorithms.cost_model import CostModel
from align_anything.trainers.launch import launch
from align_anything.trainers.text_image_to_text import PAIR


def main() -> None:
    launch(PAIR, CostModel)


if __name__ == '__main__':
    main()
