"""Proximal policy optimisation with a reward service, `text_image_to_text`."""

from align_anything.algorithms.ppo_remote_rm import PPORemoteRM
from align_anything.trainers.launch import launch
from align_anything.trainers.text_image_to_text import PAIR


def main() -> None:
    launch(PAIR, PPORemoteRM)


if __name__ == '__main__':
    main()
