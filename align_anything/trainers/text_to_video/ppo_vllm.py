"""Proximal policy optimisation with vLLM, `text_to_video`."""

from align_anything.trainers.launch import leaf

main = leaf('text_to_video', 'ppo_vllm')

if __name__ == '__main__':
    main()
