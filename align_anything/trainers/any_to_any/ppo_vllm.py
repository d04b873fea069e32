"""Proximal policy optimisation with vLLM, `any_to_any`."""

from align_anything.trainers.launch import leaf

main = leaf('any_to_any', 'ppo_vllm')

if __name__ == '__main__':
    main()
