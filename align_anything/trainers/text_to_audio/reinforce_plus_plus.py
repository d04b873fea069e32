"""REINFORCE++, `text_to_audio`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_audio', 'reinforce_plus_plus')

if __name__ == '__main__':
    main()
