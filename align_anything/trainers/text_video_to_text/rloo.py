"""REINFORCE leave-one-out, `text_video_to_text`."""

from align_anything.algorithms.rloo import RLOO
from align_anything.trainers.launch import launch
from align_anything.trainers.text_video_to_text import PAIR


def main() -> None:
    launch(PAIR, RLOO)


if __name__ == '__main__':
    main()
