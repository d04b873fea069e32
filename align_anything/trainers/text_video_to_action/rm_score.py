"""Scores of a reward or cost model, `text_video_to_action`."""

from align_anything.trainers.launch import leaf

main = leaf('text_video_to_action', 'rm_score')

if __name__ == '__main__':
    main()
