"""Proximal policy optimisation, `any_to_text`."""

from align_anything.algorithms.ppo import PPO
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, PPO)


if __name__ == '__main__':
    main()
