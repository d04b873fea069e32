"""Scores of a reward or cost model, `any_to_text`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_text', 'rm_score')

if __name__ == '__main__':
    main()
