"""Proximal policy optimisation, `text_video_to_action`."""

from align_anything.trainers.launch import leaf

main = leaf('text_video_to_action', 'ppo')

if __name__ == '__main__':
    main()
