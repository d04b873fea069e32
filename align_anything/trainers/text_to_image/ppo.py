"""Proximal policy optimisation, `text_to_image`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_image', 'ppo')

if __name__ == '__main__':
    main()
