"""Proximal policy optimisation with a reward service, `any_to_text`."""

from align_anything.algorithms.ppo_remote_rm import PPORemoteRM
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, PPORemoteRM)


if __name__ == '__main__':
    main()
