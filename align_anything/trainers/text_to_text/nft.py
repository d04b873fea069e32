"""DiffusionNFT, `text_to_text`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_text', 'nft')

if __name__ == '__main__':
    main()
