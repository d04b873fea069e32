"""Online DPO, `text_image_to_image`."""

from align_anything.trainers.launch import leaf

main = leaf('text_image_to_image', 'online_dpo')

if __name__ == '__main__':
    main()
