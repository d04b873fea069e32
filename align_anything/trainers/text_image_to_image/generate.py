"""Generation with a checkpoint, `text_image_to_image`."""

from align_anything.trainers.launch import leaf

main = leaf('text_image_to_image', 'generate')

if __name__ == '__main__':
    main()
