#!/usr/bin/env bash
# Stable Diffusion 1.5 learns from pictures that it is shown with their prompts.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-stable-diffusion-v1-5/stable-diffusion-v1-5}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-poloclub/diffusiondb}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-DiffusionDB}" # how rows become conversations
TRAIN_NAME="${TRAIN_NAME-2m_random_1k}" # configuration of the hub dataset; empty for local data
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/sd15_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_image.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    ${TRAIN_NAME:+--train_name "${TRAIN_NAME}"} \
    --train_split "${TRAIN_SPLIT}" \
    --prompt_dropout 0.1 \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
