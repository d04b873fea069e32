#!/usr/bin/env bash
# On one machine with one GPU, without a network, in at most 20 minutes: the tests that need a GPU, and what a step
# reaches there. Prints a table for docs/benchmarks.md.
#
#     bash scripts/gpu_check.sh [FOLDER]
#
# FOLDER holds the wheels that were carried in (`uv pip download` of what constraints.txt names, for this machine).
# Without it the environment in .venv is taken as it is, made by `make install`.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -gt 0 ]; then
    python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --no-index --find-links "$1" --constraint constraints.txt --editable '.[dev]'
elif [ ! -x .venv/bin/python ]; then
    echo 'There is no environment in .venv: run `make install`, or name the folder of the wheels.' >&2
    exit 1
fi
export PATH="${PWD}/.venv/bin:${PATH}" HF_HUB_OFFLINE=1 PYTHONHASHSEED=0 TOKENIZERS_PARALLELISM=false
unset PYTHONDONTWRITEBYTECODE

if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo 'torch sees no CUDA device here; nothing of this can be checked without one.' >&2
    exit 1
fi
python -c 'import torch; print("device:", torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)'

WORK="$(mktemp -d)"
trap 'rm -rf "${WORK}"' EXIT
STATUS=0

echo; echo 'tests marked gpu'
timeout 300 python -m pytest -m gpu -n 0 -q -p no:cacheprovider || STATUS=1

# A language model of 1.5 billion weights, and one that sees; random weights take as long as trained ones.
python -m scripts.gpu_steps rows "${WORK}"
python -m align_anything.testing.tiny qwen2 --out "${WORK}/text" --hidden 2432 --layers 28 --heads 19
python -m align_anything.testing.tiny qwen2_5_vl --out "${WORK}/image" --hidden 1536 --layers 16 --heads 12 \
    --vision_hidden 1280 --vision_layers 24 --image_size 448

run() {
    local name="$1" pair="$2" algorithm="$3"
    shift 3
    echo; echo "${name}"
    timeout 240 align-anything train "${pair}" "${algorithm}" --output_dir "${WORK}/runs/${name}" --max_steps 12 \
        --bf16 True --log_type none --log_interval 1 --eval_strategy no --save_checkpoint False \
        "$@" >"${WORK}/${name}.log" 2>&1 || { tail -20 "${WORK}/${name}.log"; STATUS=1; }
}
TEXT=(--model_name_or_path "${WORK}/text" --model_max_length 2048)
TAUGHT=(--train_datasets "${WORK}/text.jsonl" --train_template Instruction --max_length_per_batch 16384)
run text_packed text_to_text sft "${TEXT[@]}" "${TAUGHT[@]}" --layout packed
run text_compiled text_to_text sft "${TEXT[@]}" "${TAUGHT[@]}" --layout packed --torch_compile True \
    --ds_cfgs ds_z2_config.json
run text_padded text_to_text sft "${TEXT[@]}" "${TAUGHT[@]}" --layout padded
run image_packed text_image_to_text sft --model_name_or_path "${WORK}/image" --train_datasets "${WORK}/image.jsonl" \
    --train_template Messages --layout packed --max_length_per_batch 16384 --model_max_length 4096
run grpo text_to_text grpo "${TEXT[@]}" --train_datasets "${WORK}/prompts.jsonl" --train_template Prompts \
    --reward_functions "[${WORK}/rewards.py:brief]" --per_device_prompt_batch_size 8 --num_generations 8 --max_new_tokens 256

python -m scripts.gpu_steps table "${WORK}/runs"
exit "${STATUS}"
