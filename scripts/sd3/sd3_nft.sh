#!/usr/bin/env bash
# Stable Diffusion 3.5 by DiffusionNFT: adapters learn from rewards of its own pictures, noised again.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-stabilityai/stable-diffusion-3.5-medium}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-nateraw/parti-prompts}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Prompts}" # how rows become prompts
PROMPT_COLUMN="${PROMPT_COLUMN:-Prompt}" # column with the prompt
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
REWARD_FUNCTIONS="${REWARD_FUNCTIONS:-jpeg_size}" # what rewards a picture: names, or file.py:name of your own
NUM_GENERATIONS="${NUM_GENERATIONS:-8}" # pictures to each prompt
ROLLOUT_STEPS="${ROLLOUT_STEPS:-10}" # denoising steps of a rollout
PER_DEVICE_PROMPT_BATCH_SIZE="${PER_DEVICE_PROMPT_BATCH_SIZE:-4}" # prompts that a device makes pictures of at once
PER_DEVICE_TRAIN_BATCH_SIZE="${PER_DEVICE_TRAIN_BATCH_SIZE:-8}" # pictures in a micro-batch
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-4}" # micro-batches in an optimizer step
OUTPUT_DIR="${OUTPUT_DIR:-output/sd3_nft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_image.nft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_template_kwargs.prompt "${PROMPT_COLUMN}" \
    --train_split "${TRAIN_SPLIT}" \
    --use_lora True \
    --reward_functions "[${REWARD_FUNCTIONS}]" \
    --num_generations "${NUM_GENERATIONS}" \
    --per_device_prompt_batch_size "${PER_DEVICE_PROMPT_BATCH_SIZE}" \
    --per_device_train_batch_size "${PER_DEVICE_TRAIN_BATCH_SIZE}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS}" \
    --guidance_scale 1 \
    --rollout_steps "${ROLLOUT_STEPS}" \
    --ema_decay 0.9 \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
