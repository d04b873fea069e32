#!/usr/bin/env bash
# Qwen2.5, of the family Qwen2, by PPO on prompts of PKU-SafeRLHF, rewarded by the model of qwen2_rm.sh.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-Qwen/Qwen2.5-7B-Instruct}" # checkpoint: a folder or a hub name
TRAIN_DATASETS="${TRAIN_DATASETS:-PKU-Alignment/PKU-SafeRLHF}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-PKUSafeRLHF}" # how rows become prompts
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
REWARD_MODEL_NAME_OR_PATH="${REWARD_MODEL_NAME_OR_PATH:-output/qwen2_rm/slice_end}" # what qwen2_rm.sh has trained, or another
PER_DEVICE_PROMPT_BATCH_SIZE="${PER_DEVICE_PROMPT_BATCH_SIZE:-16}" # prompts that a device generates responses to at once
PER_DEVICE_TRAIN_BATCH_SIZE="${PER_DEVICE_TRAIN_BATCH_SIZE:-4}" # responses in a micro-batch
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-4}" # micro-batches in an optimizer step
OUTPUT_DIR="${OUTPUT_DIR:-output/qwen2_ppo}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_to_text.ppo \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_split "${TRAIN_SPLIT}" \
    --reward_model_name_or_path "${REWARD_MODEL_NAME_OR_PATH}" \
    --reward_critic_model_name_or_path "${REWARD_MODEL_NAME_OR_PATH}" \
    --per_device_prompt_batch_size "${PER_DEVICE_PROMPT_BATCH_SIZE}" \
    --per_device_train_batch_size "${PER_DEVICE_TRAIN_BATCH_SIZE}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
