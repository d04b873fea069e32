#!/usr/bin/env bash
# Qwen2.5-VL on the better answers about videos of Align-Anything.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen2.5-VL-7B-Instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-PKU-Alignment/align-anything}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-AA_TV2T}" # how rows become conversations
TRAIN_NAME="${TRAIN_NAME-text-video-to-text}" # configuration of the hub dataset; empty for local data
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
VIDEO_FOLDER="${VIDEO_FOLDER:-.}" # where the paths of videos in the rows start: the folder of the downloaded files
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen2_5_vl_video_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_video_to_text.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    ${TRAIN_NAME:+--train_name "${TRAIN_NAME}"} \
    --train_split "${TRAIN_SPLIT}" \
    --video_folder "${VIDEO_FOLDER}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
