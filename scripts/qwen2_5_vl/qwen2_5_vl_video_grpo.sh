#!/usr/bin/env bash
# Qwen2.5-VL by GRPO on videos of Align-Anything, rewarded by the model of qwen2_5_vl_video_rm.sh.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen2.5-VL-7B-Instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-PKU-Alignment/align-anything}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-AA_TV2T}" # how rows become prompts
TRAIN_NAME="${TRAIN_NAME-text-video-to-text}" # configuration of the hub dataset; empty for local data
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
VIDEO_FOLDER="${VIDEO_FOLDER:-.}" # where the paths of videos in the rows start: the folder of the downloaded files
REWARD_MODEL_NAME_OR_PATH="${REWARD_MODEL_NAME_OR_PATH:-output/qwen2_5_vl_video_rm/slice_end}" # what qwen2_5_vl_video_rm.sh has trained, or another
NUM_GENERATIONS="${NUM_GENERATIONS:-8}" # responses to each prompt
PER_DEVICE_PROMPT_BATCH_SIZE="${PER_DEVICE_PROMPT_BATCH_SIZE:-2}" # prompts that a device generates responses to at once
PER_DEVICE_TRAIN_BATCH_SIZE="${PER_DEVICE_TRAIN_BATCH_SIZE:-8}" # responses in a micro-batch
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-2}" # micro-batches in an optimizer step
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen2_5_vl_video_grpo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_video_to_text.grpo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    ${TRAIN_NAME:+--train_name "${TRAIN_NAME}"} \
    --train_split "${TRAIN_SPLIT}" \
    --video_folder "${VIDEO_FOLDER}" \
    --reward_model_name_or_path "${REWARD_MODEL_NAME_OR_PATH}" \
    --num_generations "${NUM_GENERATIONS}" \
    --per_device_prompt_batch_size "${PER_DEVICE_PROMPT_BATCH_SIZE}" \
    --per_device_train_batch_size "${PER_DEVICE_TRAIN_BATCH_SIZE}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
