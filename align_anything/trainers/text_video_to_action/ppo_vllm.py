"""Proximal policy optimisation with vLLM, `text_video_to_action`."""

from align_anything.trainers.launch import leaf

main = leaf('text_video_to_action', 'ppo_vllm')

if __name__ == '__main__':
    main()
