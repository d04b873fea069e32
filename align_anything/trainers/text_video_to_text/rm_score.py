"""Scores of a reward or cost model, `text_video_to_text`."""

from align_anything.algorithms.rm_score import RMScore
from align_anything.trainers.launch import launch
from align_anything.trainers.text_video_to_text import PAIR


def main() -> None:
    launch(PAIR, RMScore)


if __name__ == '__main__':
    main()
