#!/usr/bin/env bash
# Stable Diffusion 1.5 learns which of two pictures people preferred (Diffusion-DPO on Pick-a-Pic).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-stable-diffusion-v1-5/stable-diffusion-v1-5}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-yuvalkirstain/pickapic_v2}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Pickapic}" # how rows become pairs
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/sd15_dpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_image.dpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
