"""Scores of a reward or cost model, `any_to_any`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_any', 'rm_score')

if __name__ == '__main__':
    main()
