"""Online DPO, `text_audio_to_text`."""

from align_anything.algorithms.online_dpo import OnlineDPO
from align_anything.trainers.launch import launch
from align_anything.trainers.text_audio_to_text import PAIR


def main() -> None:
    launch(PAIR, OnlineDPO)


if __name__ == '__main__':
    main()
