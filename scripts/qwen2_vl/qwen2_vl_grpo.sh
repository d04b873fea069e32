#!/usr/bin/env bash
# Qwen2-VL by GRPO on images of things to be counted (CLEVR), whose answers are checked.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen2-VL-7B-Instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-leonardPKU/clevr_cogen_a_train}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Instruction}" # how rows become prompts
PROMPT_COLUMN="${PROMPT_COLUMN:-problem}" # column with the question
RESPONSE_COLUMN="${RESPONSE_COLUMN:-solution}" # column with the golden answer
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
REWARD_FUNCTIONS="${REWARD_FUNCTIONS:-math}" # what rewards a response: names, or file.py:name of your own
NUM_GENERATIONS="${NUM_GENERATIONS:-8}" # responses to each prompt
PER_DEVICE_PROMPT_BATCH_SIZE="${PER_DEVICE_PROMPT_BATCH_SIZE:-2}" # prompts that a device generates responses to at once
PER_DEVICE_TRAIN_BATCH_SIZE="${PER_DEVICE_TRAIN_BATCH_SIZE:-8}" # responses in a micro-batch
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-2}" # micro-batches in an optimizer step
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen2_vl_grpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_text.grpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_template_kwargs.prompt "${PROMPT_COLUMN}" \
    --train_template_kwargs.response "${RESPONSE_COLUMN}" \
    --train_split "${TRAIN_SPLIT}" \
    --reward_functions "[${REWARD_FUNCTIONS}]" \
    --num_generations "${NUM_GENERATIONS}" \
    --per_device_prompt_batch_size "${PER_DEVICE_PROMPT_BATCH_SIZE}" \
    --per_device_train_batch_size "${PER_DEVICE_TRAIN_BATCH_SIZE}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
