"""Proximal policy optimisation with vLLM, `any_to_text`."""

from align_anything.algorithms.ppo_vllm import PPOVLLM
from align_anything.trainers.any_to_text import PAIR
from align_anything.trainers.launch import launch


def main() -> None:
    launch(PAIR, PPOVLLM)


if __name__ == '__main__':
    main()
