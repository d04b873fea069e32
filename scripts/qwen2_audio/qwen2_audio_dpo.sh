#!/usr/bin/env bash
# Qwen2-Audio on pairs of answers about audio clips of Align-Anything.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen2-Audio-7B-Instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-PKU-Alignment/align-anything}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-AA_TA2T}" # how rows become conversations
TRAIN_NAME="${TRAIN_NAME-text-audio-to-text}" # configuration of the hub dataset; empty for local data
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
AUDIO_FOLDER="${AUDIO_FOLDER:-.}" # where the paths of audio clips in the rows start: the folder of the downloaded files
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen2_audio_dpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_audio_to_text.dpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    ${TRAIN_NAME:+--train_name "${TRAIN_NAME}"} \
    --train_split "${TRAIN_SPLIT}" \
    --audio_folder "${AUDIO_FOLDER}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
