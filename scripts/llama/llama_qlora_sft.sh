#!/usr/bin/env bash
# Llama in 4 bits under low-rank adapters, on instructions.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-meta-llama/Llama-3.1-8B-Instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-tatsu-lab/alpaca}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Alpaca}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
LEARNING_RATE="${LEARNING_RATE:-2e-4}" # adapters bear a larger one than whole weights
export ZERO_STAGE_FILE="${ZERO_STAGE_FILE:-ds_z2_config.json}" # DeepSpeed file
OUTPUT_DIR="${OUTPUT_DIR:-output/llama_qlora_sft}" # where the trained model goes

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
    --use_bnb True \
    "$@"
