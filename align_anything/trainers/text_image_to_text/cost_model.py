"""Cost modelling, `text_image_to_text`."""

from align_anything.trainers.launch import leaf

main = leaf('text_image_to_text', 'cost_model')

if __name__ == '__main__':
    main()
