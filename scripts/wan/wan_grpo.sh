#!/usr/bin/env bash
# Wan 2.1 by Flow-GRPO with a window of two steps: adapters learn what a reward likes of its own clips.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Wan-AI/Wan2.1-T2V-1.3B-Diffusers}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-nateraw/parti-prompts}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Prompts}" # how rows become prompts
PROMPT_COLUMN="${PROMPT_COLUMN:-Prompt}" # column with the prompt
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
REWARD_FUNCTIONS="${REWARD_FUNCTIONS:-jpeg_size}" # what rewards a clip: names, or file.py:name of your own
NUM_GENERATIONS="${NUM_GENERATIONS:-8}" # clips to each prompt
ROLLOUT_STEPS="${ROLLOUT_STEPS:-10}" # denoising steps of a rollout
PER_DEVICE_PROMPT_BATCH_SIZE="${PER_DEVICE_PROMPT_BATCH_SIZE:-1}" # prompts that a device makes clips of at once
PER_DEVICE_TRAIN_BATCH_SIZE="${PER_DEVICE_TRAIN_BATCH_SIZE:-1}" # clips in a micro-batch
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-4}" # micro-batches in an optimizer step
NUM_FRAMES="${NUM_FRAMES:-49}" # frames of a clip, one more than a multiple of 4
RESOLUTION="${RESOLUTION:-[480, 832]}" # height and width of clips
OUTPUT_DIR="${OUTPUT_DIR:-output/wan_grpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_video.grpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_template_kwargs.prompt "${PROMPT_COLUMN}" \
    --train_split "${TRAIN_SPLIT}" \
    --num_frames "${NUM_FRAMES}" \
    --resolution "${RESOLUTION}" \
    --use_lora True \
    --reward_functions "[${REWARD_FUNCTIONS}]" \
    --num_generations "${NUM_GENERATIONS}" \
    --per_device_prompt_batch_size "${PER_DEVICE_PROMPT_BATCH_SIZE}" \
    --per_device_train_batch_size "${PER_DEVICE_TRAIN_BATCH_SIZE}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS}" \
    --guidance_scale 4.5 \
    --rollout_steps "${ROLLOUT_STEPS}" \
    --sde_window 2 \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
