"""PPO without a critic, `any_to_any`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_any', 'multi_ppo')

if __name__ == '__main__':
    main()
