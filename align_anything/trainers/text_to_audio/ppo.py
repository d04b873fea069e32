"""Proximal policy optimisation, `text_to_audio`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_audio', 'ppo')

if __name__ == '__main__':
    main()
