#!/usr/bin/env bash
# Phi-3-vision on the better answers about images of SPA-VL.
# The class of this family comes with the checkpoint: its code runs on this machine, so look at where it comes from.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-microsoft/Phi-3-vision-128k-instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-sqrti/SPA-VL}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-SPA_VL}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
OUTPUT_DIR="${OUTPUT_DIR:-output/phi3_v_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_text.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --trust_remote_code True \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
