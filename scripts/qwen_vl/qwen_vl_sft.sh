#!/usr/bin/env bash
# Qwen-VL-Chat on the better answers about images of SPA-VL.
# The class of this family comes with the checkpoint: its code runs on this machine, so look at where it comes from.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen-VL-Chat}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-sqrti/SPA-VL}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-SPA_VL}" # how rows become conversations
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
# ZeRO-3 cannot gather what nn.MultiheadAttention reads, through which images go in this family.
export ZERO_STAGE_FILE="${ZERO_STAGE_FILE:-ds_z2_config.json}" # DeepSpeed file
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen_vl_sft}" # where the trained model goes

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
