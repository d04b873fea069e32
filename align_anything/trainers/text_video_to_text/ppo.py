"""Proximal policy optimisation, `text_video_to_text`."""

from align_anything.algorithms.ppo import PPO
from align_anything.trainers.launch import launch
from align_anything.trainers.text_video_to_text import PAIR


def main() -> None:
    launch(PAIR, PPO)


if __name__ == '__main__':
    main()
