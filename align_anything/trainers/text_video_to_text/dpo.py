"""Direct preference optimisation, `text_video_to_text`."""

from align_anything.algorithms.dpo import DPO
from align_anything.trainers.launch import launch
from align_anything.trainers.text_video_to_text import PAIR


def main() -> None:
    launch(PAIR, DPO)


if __name__ == '__main__':
    main()
