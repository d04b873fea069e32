#!/usr/bin/env bash
# Teaches a small LLaVA, made from scratch, to read handwritten digits, and asks it about digits it has never seen.
# Needs no GPU and no network: two CPU cores and a few minutes. `make demo` calls it. Fails when it learns too little.

DEMO_DIR="${DEMO_DIR:-output/demo}" # where everything goes, in place of an earlier demo
EPOCHS="${EPOCHS:-3}"

source "$(dirname "${BASH_SOURCE[0]}")/../demo.sh"

STEPS="${REPOSITORY}/scripts/demo/digits.py"

python3 "${STEPS}" prepare "${DEMO_DIR}"

train align_anything.trainers.text_image_to_text.sft \
    --model_name_or_path "${DEMO_DIR}/untrained" \
    --train_datasets "${DEMO_DIR}/data/train.json" \
    --train_template ShareGPT \
    --eval_datasets "${DEMO_DIR}/data/held_out.json" \
    --eval_template ShareGPT \
    --output_dir "${DEMO_DIR}/run" \
    --freeze_vision_tower False \
    --epochs "${EPOCHS}" \
    --per_device_train_batch_size 32 \
    --per_device_eval_batch_size 100 \
    --learning_rate 1.5e-3 \
    --lr_warmup_ratio 0.1 \
    --log_interval 20

python3 "${STEPS}" check "${DEMO_DIR}"
printf '\nall of it took %s s\n' "${SECONDS}"
