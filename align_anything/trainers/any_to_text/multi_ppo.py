"""PPO without a critic, `any_to_text`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_text', 'multi_ppo')

if __name__ == '__main__':
    main()
