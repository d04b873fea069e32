"""Generation with a checkpoint, `text_to_video`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_video', 'generate')

if __name__ == '__main__':
    main()
