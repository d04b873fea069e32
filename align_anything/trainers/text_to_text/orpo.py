"""Odds ratio preference optimisation, `text_to_text`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_text', 'orpo')

if __name__ == '__main__':
    main()
