#!/usr/bin/env bash
# AudioLDM learns from the sounds of WavCaps that it hears with their captions.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-cvssp/audioldm-s-full-v2}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-wavcaps.jsonl}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-WavCaps}" # how rows become conversations
AUDIO_FOLDER="${AUDIO_FOLDER:-.}" # where the paths of audio clips in the rows start: the folder of the downloaded files
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/audioldm_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_audio.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --audio_folder "${AUDIO_FOLDER}" \
    --train_split "${TRAIN_SPLIT}" \
    --prompt_dropout 0.1 \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
