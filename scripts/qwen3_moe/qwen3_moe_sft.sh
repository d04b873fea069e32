#!/usr/bin/env bash
# Qwen3 with experts, on instructions.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen3-30B-A3B}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-tatsu-lab/alpaca}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Alpaca}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
export ZERO_STAGE_FILE="${ZERO_STAGE_FILE:-ds_z3_offload_config.json}" # DeepSpeed file
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen3_moe_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_text.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
