#!/usr/bin/env bash
# A vision-language model on data of your own: a question, an answer and an image in each row.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen2.5-VL-3B-Instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:?name your data, as in TRAIN_DATASETS=rows.jsonl bash $0}" # .json, .jsonl, .csv, .parquet or a folder
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Instruction}" # how rows become conversations
PROMPT_COLUMN="${PROMPT_COLUMN:-question}" # column with the question
RESPONSE_COLUMN="${RESPONSE_COLUMN:-answer}" # column with the answer
IMAGES_COLUMN="${IMAGES_COLUMN:-image}" # column with the image, or a list of them
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
LEARNING_RATE="${LEARNING_RATE:-2e-4}" # adapters bear a larger one than whole weights
export ZERO_STAGE_FILE="${ZERO_STAGE_FILE:-ds_z2_config.json}" # DeepSpeed file
OUTPUT_DIR="${OUTPUT_DIR:-output/own_data_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_text.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_template_kwargs.prompt "${PROMPT_COLUMN}" \
    --train_template_kwargs.response "${RESPONSE_COLUMN}" \
    --train_template_kwargs.images "${IMAGES_COLUMN}" \
    --train_split "${TRAIN_SPLIT}" \
    --learning_rate "${LEARNING_RATE}" \
    --output_dir "${OUTPUT_DIR}" \
    --use_lora True \
    "$@"
