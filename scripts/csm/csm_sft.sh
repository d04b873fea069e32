#!/usr/bin/env bash
# CSM learns to read texts aloud (docs/emitting.md).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-sesame/csm-1b}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-mythicinfinity/libritts_r}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-TTS}" # how rows become conversations
TRAIN_NAME="${TRAIN_NAME-clean}" # configuration of the hub dataset; empty for local data
TRAIN_SPLIT="${TRAIN_SPLIT:-train.clean.100}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/csm_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_audio.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    ${TRAIN_NAME:+--train_name "${TRAIN_NAME}"} \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
