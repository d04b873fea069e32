"""Proximal policy optimisation with a reward service, `any_to_any`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_any', 'ppo_remote_rm')

if __name__ == '__main__':
    main()
