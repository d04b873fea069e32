#!/usr/bin/env bash
# A reward model of Qwen2.5-VL on pairs of answers about images (RLAIF-V).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen2.5-VL-7B-Instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-openbmb/RLAIF-V-Dataset}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-RLAIFV}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen2_5_vl_rm}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_text.rm \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
