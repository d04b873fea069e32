"""Safe RLHF, `text_to_video`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_video', 'saferlhf')

if __name__ == '__main__':
    main()
