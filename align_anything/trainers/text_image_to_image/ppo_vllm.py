"""Proximal policy optimisation with vLLM, `text_image_to_image`."""

from align_anything.trainers.launch import leaf

main = leaf('text_image_to_image', 'ppo_vllm')

if __name__ == '__main__':
    main()
