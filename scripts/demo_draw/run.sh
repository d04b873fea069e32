#!/usr/bin/env bash
# Teaches a small language model, made from scratch, to draw handwritten digits: first by pictures of which half are
# named wrongly, then by the rewards of a classifier. Needs no GPU and no network: two CPU cores and a few minutes.
# `make demo-draw` calls it. Fails when it learns too little.

DEMO_DIR="${DEMO_DIR:-output/demo_draw}" # where everything goes, in place of an earlier demo
STEPS="${STEPS:-1200}"                   # of supervised training
REWARDED_STEPS="${REWARDED_STEPS:-80}"

source "$(dirname "${BASH_SOURCE[0]}")/../demo.sh"

DRAWING="${REPOSITORY}/scripts/demo_draw/drawing.py"

SHARED=(
    --model_max_length 96
    --epochs 200
    --eval_strategy no
    --save_checkpoint False
    --num_workers 0
)

python3 "${DRAWING}" prepare "${DEMO_DIR}"

train align_anything.trainers.text_to_image.sft \
    --model_name_or_path "${DEMO_DIR}/untrained" \
    --train_datasets "${DEMO_DIR}/data/rows.jsonl" \
    --train_template Instruction \
    --train_template_kwargs '{answers: image, prompt: question, response: picture}' \
    --sample_cache_dir "${DEMO_DIR}/data/encoded" \
    --output_dir "${DEMO_DIR}/supervised" \
    --max_steps "${STEPS}" \
    --per_device_train_batch_size 32 \
    --learning_rate 1.5e-3 \
    --lr_scheduler_type cosine \
    --lr_warmup_ratio 0.1 \
    "${SHARED[@]}"

train align_anything.trainers.text_to_image.grpo \
    --model_name_or_path "${DEMO_DIR}/supervised/slice_end" \
    --train_datasets "${DEMO_DIR}/data/rows.jsonl" \
    --train_template Prompts \
    --train_template_kwargs '{prompt: question, answer: "", keep_columns: True}' \
    --reward_functions "[${DRAWING}:drawn_digit]" \
    --output_dir "${DEMO_DIR}/rewarded" \
    --max_steps "${REWARDED_STEPS}" \
    --num_generations 8 \
    --per_device_prompt_batch_size 16 \
    --per_device_train_batch_size 128 \
    --update_iters 2 \
    --max_new_tokens 20 \
    --beta 0 \
    --learning_rate 5e-4 \
    --lr_scheduler_type constant \
    "${SHARED[@]}"

python3 "${DRAWING}" check "${DEMO_DIR}"
printf '\nall of it took %s s\n' "${SECONDS}"
