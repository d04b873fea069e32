#!/usr/bin/env bash
# AudioLDM learns which of two sounds people preferred (text-to-audio preferences of align-anything).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-cvssp/audioldm-s-full-v2}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-PKU-Alignment/align-anything}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-AA_T2A}" # how rows become pairs
TRAIN_NAME="${TRAIN_NAME-text-to-audio}" # configuration of the hub dataset; empty for local data
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/audioldm_dpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_audio.dpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    ${TRAIN_NAME:+--train_name "${TRAIN_NAME}"} \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
