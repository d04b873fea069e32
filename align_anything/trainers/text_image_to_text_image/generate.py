"""Generation with a checkpoint, `text_image_to_text_image`."""

from align_anything.trainers.launch import leaf

main = leaf('text_image_to_text_image', 'generate')

if __name__ == '__main__':
    main()
