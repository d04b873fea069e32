#!/usr/bin/env bash
# LLaVA-1.5 on pairs of answers about images (SPA-VL).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-llava-hf/llava-1.5-7b-hf}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-sqrti/SPA-VL}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-SPA_VL}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/llava_dpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_text.dpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
