# Sourced by the demos: what setup.sh gives, without a guess of DeepSpeed's, and `train`, which shows what it runs.

source "${BASH_SOURCE[0]%/*}/setup.sh"

# DeepSpeed guesses, and says so at length, unless it is told that there is no GPU.
if [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ] && [ ! -e /dev/kfd ]; then
    export DS_ACCELERATOR=cpu
fi

# train MODULE SETTINGS...: on one device, in float32, without what takes time and tells nothing of a small model.
train() {
    local command=(
        deepspeed --quiet --num_gpus 1 --master_port "${MASTER_PORT}" --module "$@"
        --ds_cfgs ds_z0_config.json
        --bf16 False
        --gradient_checkpointing False
        --gradient_accumulation_steps 1
        --log_type none
        --save_total_limit 0
    )
    printf '\n%s\n\n' "${command[*]}" | sed 's/ --m/ \\\n    --m/g; s/ --\([^qnm]\)/ \\\n    --\1/g'
    "${command[@]}"
}
