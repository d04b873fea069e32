#!/usr/bin/env bash
# A language model with tokens for pictures (docs/emitting.md) learns to edit them as it is told (MagicBrush).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-output/drawing_model}" # checkpoint: the folder that align-anything add-media-tokens wrote
TRAIN_DATASETS="${TRAIN_DATASETS:-osunlp/MagicBrush}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Instruction}" # how rows become conversations
IMAGE_COLUMN="${IMAGE_COLUMN:-source_img}" # column with the image to edit
RESPONSE_COLUMN="${RESPONSE_COLUMN:-target_img}" # column with the edited one
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/editing_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_image.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_template_kwargs.answers image \
    --train_template_kwargs.images "${IMAGE_COLUMN}" \
    --train_template_kwargs.response "${RESPONSE_COLUMN}" \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
