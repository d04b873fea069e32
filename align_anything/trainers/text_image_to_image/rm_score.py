"""Scores of a reward or cost model, `text_image_to_image`."""

from align_anything.trainers.launch import leaf

main = leaf('text_image_to_image', 'rm_score')

if __name__ == '__main__':
    main()
