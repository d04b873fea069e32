#!/usr/bin/env bash
# OPT on the better answer of each pair in PKU-SafeRLHF; small enough for any GPU.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-facebook/opt-125m}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-PKU-Alignment/PKU-SafeRLHF}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-PKUSafeRLHF}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
MODEL_MAX_LENGTH="${MODEL_MAX_LENGTH:-2048}" # OPT knows no later positions
OUTPUT_DIR="${OUTPUT_DIR:-output/opt_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_text.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --model_max_length "${MODEL_MAX_LENGTH}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
