"""Proximal policy optimisation with vLLM, `text_image_to_text`."""

from align_anything.algorithms.ppo_vllm import PPOVLLM
from align_anything.trainers.launch import launch
from align_anything.trainers.text_image_to_text import PAIR


def main() -> None:
    launch(PAIR, PPOVLLM)


if __name__ == '__main__':
    main()
