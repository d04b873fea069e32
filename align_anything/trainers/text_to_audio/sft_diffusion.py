"""Supervised fine-tuning, `text_to_audio`, by the name that it has in align-anything."""

from align_anything.trainers.text_to_audio.sft import main

if __name__ == '__main__':
    main()
