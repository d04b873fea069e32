"""Generation with a checkpoint, `text_audio_to_text`."""

from align_anything.trainers.launch import leaf

main = leaf('text_audio_to_text', 'generate')

if __name__ == '__main__':
    main()
