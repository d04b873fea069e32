"""PPO without a critic, `any_to_text`."""

from align_anything.algorithms.multi_ppo import MultiPPO
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, MultiPPO)


if __name__ == '__main__':
    main()
