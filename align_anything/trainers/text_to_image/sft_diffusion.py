"""Supervised fine-tuning, `text_to_image`, by the name that it has in align-anything."""

from align_anything.trainers.text_to_image.sft import main

if __name__ == '__main__':
    main()
