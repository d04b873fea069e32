"""Scores of a reward or cost model, `text_to_audio`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_audio', 'rm_score')

if __name__ == '__main__':
    main()
