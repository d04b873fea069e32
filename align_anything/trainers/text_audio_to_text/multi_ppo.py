"""PPO without a critic, `text_audio_to_text`."""

from align_anything.algorithms.multi_ppo import MultiPPO
from align_anything.trainers.launch import launch
from align_anything.trainers.text_audio_to_text import PAIR


def main() -> None:
    launch(PAIR, MultiPPO)


if __name__ == '__main__':
    main()
