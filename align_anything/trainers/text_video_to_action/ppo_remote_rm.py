"""Proximal policy optimisation with a reward service, `text_video_to_action`."""

from align_anything.trainers.launch import leaf

main = leaf('text_video_to_action', 'ppo_remote_rm')

if __name__ == '__main__':
    main()
