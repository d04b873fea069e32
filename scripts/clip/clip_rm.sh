#!/usr/bin/env bash
# A CLIP model learns which pictures people pick for a text, as PickScore did (Pick-a-Pic; docs/preference.md).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-laion/CLIP-ViT-H-14-laion2B-s32B-b79K}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-yuvalkirstain/pickapic_v2}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Pickapic}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/clip_rm}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_image.rm \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_template_kwargs "{keep_ties: True}" \
    --train_split "${TRAIN_SPLIT}" \
    --learning_rate 3e-6 \
    --per_device_train_batch_size 16 \
    --regularization 0 \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
