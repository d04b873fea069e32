"""Online DPO, `text_to_audio`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_audio', 'online_dpo')

if __name__ == '__main__':
    main()
