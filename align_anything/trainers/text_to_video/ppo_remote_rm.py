"""Proximal policy optimisation with a reward service, `text_to_video`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_video', 'ppo_remote_rm')

if __name__ == '__main__':
    main()
