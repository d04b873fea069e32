"""Direct preference optimisation, `text_to_image`, by the name that it has in align-anything."""

from align_anything.trainers.text_to_image.dpo import main

if __name__ == '__main__':
    main()
