"""Generation with a checkpoint, `text_to_audio`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_audio', 'generate')

if __name__ == '__main__':
    main()
