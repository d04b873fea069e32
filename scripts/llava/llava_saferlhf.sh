#!/usr/bin/env bash
# LLaVA-1.5 by Safe RLHF (BeaverTails-V): rewarded by the model of llava_rm.sh, within the costs of llava_cost_model.sh.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-llava-hf/llava-1.5-7b-hf}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-saferlhf-v/BeaverTails-V}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-SafeRLHF_V_Cost}" # how rows become prompts
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
REWARD_MODEL_NAME_OR_PATH="${REWARD_MODEL_NAME_OR_PATH:-output/llava_rm/slice_end}" # what llava_rm.sh has trained, or another
COST_MODEL_NAME_OR_PATH="${COST_MODEL_NAME_OR_PATH:-output/llava_cost_model/slice_end}" # what llava_cost_model.sh has trained, or another
PER_DEVICE_PROMPT_BATCH_SIZE="${PER_DEVICE_PROMPT_BATCH_SIZE:-8}" # prompts that a device generates responses to at once
PER_DEVICE_TRAIN_BATCH_SIZE="${PER_DEVICE_TRAIN_BATCH_SIZE:-4}" # responses in a micro-batch
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-2}" # micro-batches in an optimizer step
OUTPUT_DIR="${OUTPUT_DIR:-output/llava_saferlhf}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_image_to_text.saferlhf \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --reward_model_name_or_path "${REWARD_MODEL_NAME_OR_PATH}" \
    --reward_critic_model_name_or_path "${REWARD_MODEL_NAME_OR_PATH}" \
    --cost_model_name_or_path "${COST_MODEL_NAME_OR_PATH}" \
    --cost_critic_model_name_or_path "${COST_MODEL_NAME_OR_PATH}" \
    --per_device_prompt_batch_size "${PER_DEVICE_PROMPT_BATCH_SIZE}" \
    --per_device_train_batch_size "${PER_DEVICE_TRAIN_BATCH_SIZE}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
