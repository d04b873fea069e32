#!/usr/bin/env bash
# Qwen2.5 with low-rank adapters, on conversations of several turns.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen2.5-7B-Instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-HuggingFaceH4/ultrachat_200k}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Messages}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train_sft}" # split of the dataset
LEARNING_RATE="${LEARNING_RATE:-2e-4}" # adapters bear a larger one than whole weights
export ZERO_STAGE_FILE="${ZERO_STAGE_FILE:-ds_z2_config.json}" # DeepSpeed file
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen2_lora_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_text.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --learning_rate "${LEARNING_RATE}" \
    --output_dir "${OUTPUT_DIR}" \
    --use_lora True \
    "$@"
