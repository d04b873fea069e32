#!/usr/bin/env bash
# Teaches a small robot, made from scratch, to pick things up in a room of MiniGrid: first from demonstrations, then, by
# Safe RLHF, to keep off hot floor, which nobody showed it. Needs no GPU and no network: two CPU cores and a few minutes.
# `make demo-robot` calls it. Fails when it learns too little.

DEMO_DIR="${DEMO_DIR:-output/demo_robot}" # where everything goes, in place of an earlier demo
EPISODES="${EPISODES:-2500}"              # that are demonstrated
STEPS="${STEPS:-480}"                     # of learning from them
SAFE_STEPS="${SAFE_STEPS:-405}"           # of Safe RLHF

source "$(dirname "${BASH_SOURCE[0]}")/../demo.sh"

ROBOT="${REPOSITORY}/scripts/demo_robot/robot.py"

SHARED=(
    --epochs 1000
    --eval_strategy no
    --save_checkpoint False
)

python3 "${ROBOT}" prepare "${DEMO_DIR}" --episodes "${EPISODES}"

train align_anything.trainers.text_video_to_action.sft \
    --model_name_or_path "${DEMO_DIR}/untrained" \
    --train_datasets "${DEMO_DIR}/shown/demonstrations.jsonl" \
    --train_template Messages \
    --image_folder "${DEMO_DIR}/shown" \
    --sample_cache_dir "${DEMO_DIR}/encoded" \
    --output_dir "${DEMO_DIR}/imitating" \
    --max_steps "${STEPS}" \
    --per_device_train_batch_size 64 \
    --learning_rate 2e-3 \
    --lr_scheduler_type cosine \
    --lr_warmup_ratio 0.1 \
    --weight_decay 0.01 \
    --num_workers 2 \
    "${SHARED[@]}"

train align_anything.trainers.text_video_to_action.saferlhf \
    --model_name_or_path "${DEMO_DIR}/imitating/slice_end" \
    --train_datasets "${DEMO_DIR}/shown/prompts.jsonl" \
    --train_template Prompts \
    --train_template_kwargs '{keep_columns: True}' \
    --environment hot_floor \
    --max_turns 24 \
    --output_dir "${DEMO_DIR}/careful" \
    --max_steps "${SAFE_STEPS}" \
    --per_device_prompt_batch_size 96 \
    --per_device_train_batch_size 32 \
    --update_iters 3 \
    --learning_rate 2.5e-4 \
    --critic_lr 5e-4 \
    --lr_scheduler_type constant \
    --gamma 0.98 \
    --gae_lambda 0.95 \
    --credit turn \
    --temperature 1.6 \
    --lambda_max 0.35 \
    --kl_coeff 0 \
    --num_workers 0 \
    "${SHARED[@]}"

python3 "${ROBOT}" check "${DEMO_DIR}"
printf '\nall of it took %s s\n' "${SECONDS}"
