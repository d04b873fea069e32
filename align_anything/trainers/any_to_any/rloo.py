"""REINFORCE leave-one-out, `any_to_any`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_any', 'rloo')

if __name__ == '__main__':
    main()
