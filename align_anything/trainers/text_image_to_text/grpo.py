"""Group relative policy optimisation, `text_image_to_text`."""

from align_anything.trainers.launch import leaf

main = leaf('text_image_to_text', 'grpo')

if __name__ == '__main__':
    main()
