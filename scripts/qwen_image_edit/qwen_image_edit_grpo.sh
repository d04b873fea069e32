#!/usr/bin/env bash
# Qwen-Image-Edit by Flow-GRPO with a window of two steps: adapters learn what a reward likes of its own edits.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen-Image-Edit}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-osunlp/MagicBrush}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Prompts}" # how rows become prompts
PROMPT_COLUMN="${PROMPT_COLUMN:-instruction}" # column that says what to change
IMAGE_COLUMN="${IMAGE_COLUMN:-source_img}" # column with the image to edit
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
RESOLUTION="${RESOLUTION:-512}" # side, or [height, width], of the images and their edits
REWARD_FUNCTIONS="${REWARD_FUNCTIONS:-jpeg_size}" # what rewards an edit: names, or file.py:name of your own
ROLLOUT_STEPS="${ROLLOUT_STEPS:-10}" # denoising steps of a rollout
NUM_GENERATIONS="${NUM_GENERATIONS:-8}" # edits to each prompt
PER_DEVICE_PROMPT_BATCH_SIZE="${PER_DEVICE_PROMPT_BATCH_SIZE:-4}" # prompts that a device edits by at once
PER_DEVICE_TRAIN_BATCH_SIZE="${PER_DEVICE_TRAIN_BATCH_SIZE:-8}" # edits in a micro-batch
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-2}" # micro-batches in an optimizer step
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen_image_edit_grpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_image.grpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_template_kwargs.prompt "${PROMPT_COLUMN}" \
    --train_template_kwargs.images "${IMAGE_COLUMN}" \
    --train_split "${TRAIN_SPLIT}" \
    --resolution "${RESOLUTION}" \
    --use_lora True \
    --reward_functions "[${REWARD_FUNCTIONS}]" \
    --num_generations "${NUM_GENERATIONS}" \
    --per_device_prompt_batch_size "${PER_DEVICE_PROMPT_BATCH_SIZE}" \
    --per_device_train_batch_size "${PER_DEVICE_TRAIN_BATCH_SIZE}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS}" \
    --guidance_scale 4 \
    --rollout_steps "${ROLLOUT_STEPS}" \
    --sde_window 2 \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
