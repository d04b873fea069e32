#!/usr/bin/env bash
# Gemma 3 on the better answers about images of RLAIF-V.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-google/gemma-3-4b-it}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-openbmb/RLAIF-V-Dataset}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-RLAIFV}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/gemma3_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_text.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
