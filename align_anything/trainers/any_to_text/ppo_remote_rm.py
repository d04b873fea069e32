"""Proximal policy optimisation with a reward service, `any_to_text`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_text', 'ppo_remote_rm')

if __name__ == '__main__':
    main()
