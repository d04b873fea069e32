"""Safe RLHF, `text_to_audio`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_audio', 'saferlhf')

if __name__ == '__main__':
    main()
