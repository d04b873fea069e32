"""Odds ratio preference optimisation, `text_video_to_action`."""

from align_anything.trainers.launch import leaf

main = leaf('text_video_to_action', 'orpo')

if __name__ == '__main__':
    main()
