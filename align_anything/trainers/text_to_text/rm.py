"""Reward modelling, `text_to_text`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_text', 'rm')

if __name__ == '__main__':
    main()
