#!/usr/bin/env bash
# Wan 2.1 learns by adapters which of two clips people found more helpful (SafeSora).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Wan-AI/Wan2.1-T2V-1.3B-Diffusers}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-safe_sora.jsonl}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-SafeSora}" # how rows become pairs
VIDEO_FOLDER="${VIDEO_FOLDER:-.}" # where the paths of video in the rows start: the folder of the downloaded files
NUM_FRAMES="${NUM_FRAMES:-49}" # frames of a clip, one more than a multiple of 4
RESOLUTION="${RESOLUTION:-[480, 832]}" # height and width of clips
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/wan_dpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_video.dpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --video_folder "${VIDEO_FOLDER}" \
    --train_split "${TRAIN_SPLIT}" \
    --num_frames "${NUM_FRAMES}" \
    --resolution "${RESOLUTION}" \
    --use_lora True \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
