"""Generation with a checkpoint, `any_to_any`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_any', 'generate')

if __name__ == '__main__':
    main()
