#!/usr/bin/env bash
# A composed model (docs/composed.md) on the better answers about audio clips of Align-Anything: first what lies between
# encoders and language model, then with STAGE=joint both, from the folder that the first stage made.
# The header can be set from the environment; further settings may follow the command.

MODEL_NAME_OR_PATH="${MODEL_NAME_OR_PATH:-output/composed_model}" # checkpoint: the folder that align-anything compose wrote
TRAIN_DATASETS="${TRAIN_DATASETS:-PKU-Alignment/align-anything}" # data: a file, a folder or a hub name
TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-AA_TA2T}" # how rows become conversations
TRAIN_NAME="${TRAIN_NAME-text-audio-to-text}" # configuration of the hub dataset; empty for local data
TRAIN_SPLIT="${TRAIN_SPLIT:-train}" # split of the dataset
AUDIO_FOLDER="${AUDIO_FOLDER:-.}" # where the paths of audio clips in the rows start: the folder of the downloaded files
STAGE="${STAGE:-projection}" # projection, or joint
OUTPUT_DIR="${OUTPUT_DIR:-output/composed_sft}" # where the trained model goes

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

deepspeed \
    --master_port "${MASTER_PORT}" \
    --module align_anything.trainers.any_to_text.sft \
    --model_name_or_path "${MODEL_NAME_OR_PATH}" \
    --train_datasets "${TRAIN_DATASETS}" \
    --train_template "${TRAIN_TEMPLATE}" \
    ${TRAIN_NAME:+--train_name "${TRAIN_NAME}"} \
    --train_split "${TRAIN_SPLIT}" \
    --audio_folder "${AUDIO_FOLDER}" \
    --stage "${STAGE}" \
    --output_dir "${OUTPUT_DIR}" \
    "$@"
