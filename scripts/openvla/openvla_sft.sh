#!/usr/bin/env bash
# OpenVLA on recorded episodes of LIBERO, one step at a time, as its makers trained it.
# The class of this family comes with the checkpoint: its code runs on this machine, so look at where it comes from. As
# published it asks for older versions of timm and transformers than are here; docs/actions.md says what that takes.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-openvla/openvla-7b}" # checkpoint: a folder or a hub name
ACTION_DATASET="${ACTION_DATASET:-libero_spatial_no_noops}" # what its statistics are called; a new name gets those of the data
TRAIN_DATASETS="${TRAIN_DATASETS:-data/libero/libero_spatial}" # data: a folder of HDF5 files
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-Libero}" # how rows become conversations
OUTPUT_DIR="${OUTPUT_DIR:-output/openvla_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.text_video_to_action.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --trust_remote_code True \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    --train_template_kwargs "{cameras: [agentview_rgb], states: []}" \
    --action_dataset "${ACTION_DATASET}" \
    --action_as_they_are "[gripper]" \
    --sliding_window 1 \
    --windows all \
    --use_lora True \
    --learning_rate 5e-4 \
    --lr_scheduler_type constant \
    --lr_warmup_ratio 0 \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
