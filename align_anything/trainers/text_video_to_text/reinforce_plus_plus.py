"""REINFORCE++, `text_video_to_text`."""

from align_anything.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from align_anything.trainers.launch import launch
from align_anything.trainers.text_video_to_text import PAIR


def main() -> None:
    launch(PAIR, ReinforcePlusPlus)


if __name__ == '__main__':
    main()
