#!/usr/bin/env bash
# SPOC on recorded episodes of CHORES, as SafeVLA begins: 100 steps of each at a time.
# The header can be set from the environment; further settings may follow the command.
# align-anything convert-spoc spoc.ckpt output/spoc makes the checkpoint of a published one.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-output/spoc}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-data/chores/PickupType}" # data: the folder of a task
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Chores}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
SLIDING_WINDOW="${SLIDING_WINDOW:-100}" # steps of an episode that are trained on at once
OUTPUT_DIR="${OUTPUT_DIR:-output/spoc_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_video_to_action.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --sliding_window "${SLIDING_WINDOW}" \
    --learning_rate 1e-4 \
    --lr_scheduler_type constant \
    --lr_warmup_ratio 0 \
    --per_device_train_batch_size 16 \
    --epochs 200 \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
