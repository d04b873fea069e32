#!/usr/bin/env bash
# Teaches a small pipeline of the form of Stable Diffusion 3, made from scratch, to paint coloured shapes: first by
# pictures with captions, then, as an adapter, by rewards for colours. Needs no GPU and no network: two CPU cores and a
# few minutes. `make demo-paint` calls it. Fails when it learns too little.

DEMO_DIR="${DEMO_DIR:-output/demo_paint}" # where everything goes, in place of an earlier demo
STEPS="${STEPS:-700}"                     # of supervised training
REWARDED_STEPS="${REWARDED_STEPS:-40}"

source "$(dirname "${BASH_SOURCE[0]}")/../demo.sh"

PAINTING="${REPOSITORY}/scripts/demo_paint/painting.py"

SHARED=(
    --max_sequence_length 6
    --epochs 1000
    --eval_strategy no
    --save_checkpoint False
    --num_workers 1
)

python3 "${PAINTING}" prepare "${DEMO_DIR}"

train align_anything.trainers.text_to_image.sft \
    --model_name_or_path "${DEMO_DIR}/untrained" \
    --train_datasets "${DEMO_DIR}/pictures" \
    --output_dir "${DEMO_DIR}/supervised" \
    --max_steps "${STEPS}" \
    --per_device_train_batch_size 32 \
    --learning_rate 6e-3 \
    --lr_scheduler_type cosine \
    --lr_warmup_ratio 0.05 \
    "${SHARED[@]}"

train align_anything.trainers.text_to_image.grpo \
    --model_name_or_path "${DEMO_DIR}/supervised/slice_end" \
    --train_datasets "${DEMO_DIR}/prompts.jsonl" \
    --train_template Prompts \
    --train_template_kwargs '{keep_columns: True}' \
    --reward_functions "[${PAINTING}:painted_as_wanted]" \
    --output_dir "${DEMO_DIR}/rewarded" \
    --use_lora True \
    --max_steps "${REWARDED_STEPS}" \
    --num_generations 8 \
    --per_device_prompt_batch_size 6 \
    --per_device_train_batch_size 48 \
    --learning_rate 2e-3 \
    --lr_scheduler_type constant \
    "${SHARED[@]}"

python3 "${PAINTING}" check "${DEMO_DIR}"
printf '\nall of it took %s s\n' "${SECONDS}"
