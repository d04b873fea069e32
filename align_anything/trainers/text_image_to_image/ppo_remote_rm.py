"""Proximal policy optimisation with a reward service, `text_image_to_image`."""

from align_anything.trainers.launch import leaf

main = leaf('text_image_to_image', 'ppo_remote_rm')

if __name__ == '__main__':
    main()
