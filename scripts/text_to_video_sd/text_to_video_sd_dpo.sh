#!/usr/bin/env bash
# ModelScope's text to video learns which of two clips people found more helpful (SafeSora).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-ali-vilab/text-to-video-ms-1.7b}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-safe_sora.jsonl}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-SafeSora}" # how rows become pairs
VIDEO_FOLDER="${VIDEO_FOLDER:-.}" # where the paths of videos in the rows start: the folder of the downloaded files
NUM_FRAMES="${NUM_FRAMES:-16}" # frames of a clip
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/text_to_video_sd_dpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_video.dpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --video_folder "${VIDEO_FOLDER}" \
    --num_frames "${NUM_FRAMES}" \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
