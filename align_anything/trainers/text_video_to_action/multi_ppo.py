"""PPO without a critic, `text_video_to_action`."""

from align_anything.trainers.launch import leaf

main = leaf('text_video_to_action', 'multi_ppo')

if __name__ == '__main__':
    main()
