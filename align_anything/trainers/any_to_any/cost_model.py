"""Cost modelling, `any_to_any`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_any', 'cost_model')

if __name__ == '__main__':
    main()
