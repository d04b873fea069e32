#!/usr/bin/env bash
# Stable Diffusion 3.5 learns by adapters from pictures that people liked or not (Diffusion-KTO on Pick-a-Pic).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-stabilityai/stable-diffusion-3.5-medium}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-yuvalkirstain/pickapic_v2}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Pickapic}" # how rows become pairs, which are taken apart
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/sd3_kto}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_image.kto \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --use_lora True \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
