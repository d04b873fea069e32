#!/usr/bin/env bash
# FLUX.1 Kontext learns by adapters from edits that it is shown (InstructPix2Pix).
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-black-forest-labs/FLUX.1-Kontext-dev}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-fusing/instructpix2pix-1000-samples}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Instruction}" # how rows become conversations
PROMPT_COLUMN="${PROMPT_COLUMN:-edit_prompt}" # column that says what to change
IMAGE_COLUMN="${IMAGE_COLUMN:-input_image}" # column with the image to edit
RESPONSE_COLUMN="${RESPONSE_COLUMN:-edited_image}" # column with what becomes of it
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
RESOLUTION="${RESOLUTION:-512}" # side, or [height, width], that both images are brought to
OUTPUT_DIR="${OUTPUT_DIR:-output/flux_kontext_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_image.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_template_kwargs.answers image \
    --train_template_kwargs.prompt "${PROMPT_COLUMN}" \
    --train_template_kwargs.images "${IMAGE_COLUMN}" \
    --train_template_kwargs.response "${RESPONSE_COLUMN}" \
    --train_split "${TRAIN_SPLIT}" \
    --resolution "${RESOLUTION}" \
    --aspect_buckets True \
    --use_lora True \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
