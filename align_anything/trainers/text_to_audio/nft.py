"""DiffusionNFT, `text_to_audio`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_audio', 'nft')

if __name__ == '__main__':
    main()
