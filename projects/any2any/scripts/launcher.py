"""What `accelerate launch` asks for by environment variables, as settings of a run on DeepSpeed or FSDP2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_anything.core.errors import SettingsError

STRATEGIES = ('FULL_SHARD', 'SHARD_GRAD_OP', 'NO_SHARD', 'HYBRID_SHARD', 'HYBRID_SHARD_ZERO2')
"""FSDP's ways to share weights, in the order of their numbers from 1."""
KEEPS_GATHERED = ('SHARD_GRAD_OP', 'HYBRID_SHARD_ZERO2')
"""Those that keep what the forward pass has gathered for the backward pass."""
PRECISIONS = {'bf16': {'bf16': True, 'fp16': False}, 'fp16': {'bf16': False, 'fp16': True}}
OPEN = (None, 'None', 'none', 'auto')
"""What stands in a variable that says nothing."""


def launched(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Returns settings of `train_cfgs` that the launcher asks for, and what to tell of them.

    Without `accelerate launch`, or where it only starts processes, there are none. Raises SettingsError for what has
    no counterpart.
    """
    settings: dict[str, Any] = dict(PRECISIONS.get(environ.get('ACCELERATE_MIXED_PRECISION', 'no'), {}))
    if environ.get('ACCELERATE_MIXED_PRECISION') == 'fp8':
        raise SettingsError(['accelerate launch: mixed_precision fp8 is not known here; take bf16 or fp16.'])
    if environ.get('ACCELERATE_USE_MEGATRON_LM') == 'true':
        raise SettingsError(['accelerate launch: runs are on DeepSpeed here, not on Megatron-LM; take DeepSpeed.'])
    if environ.get('ACCELERATE_USE_FSDP') == 'true':
        return _sharded(environ, settings)
    if environ.get('ACCELERATE_USE_DEEPSPEED') != 'true':
        return settings, []
    file = environ.get('ACCELERATE_DEEPSPEED_CONFIG_FILE')
    devices = [environ.get(f'ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE') for what in ('OPTIMIZER', 'PARAM')]
    offload = any(device not in OPEN for device in devices)
    if file in OPEN and 'nvme' in devices:
        raise SettingsError(['accelerate launch: offload to nvme has further settings; name a deepspeed_config_file.'])
    settings['ds_cfgs'] = _file(int(environ['ACCELERATE_DEEPSPEED_ZERO_STAGE']), offload) if file in OPEN else file
    numbers = {
        'gradient_accumulation_steps': ('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', int),
        'max_grad_norm': ('ACCELERATE_GRADIENT_CLIPPING', float),
    }
    for key, (variable, number) in numbers.items():
        if environ.get(variable) not in OPEN:
            settings[key] = number(environ[variable])
    return settings, [f'accelerate launch: {settings["ds_cfgs"]} says how DeepSpeed shares the weights.']


def _sharded(environ: Mapping[str, str], settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What an FSDP configuration asks for: FSDP2, but where nothing is to be shared."""
    strategy = _strategy(environ)
    offload = environ.get('FSDP_OFFLOAD_PARAMS') == 'true'
    if environ.get('FSDP_ACTIVATION_CHECKPOINTING') == 'true':
        settings['gradient_checkpointing'] = True
    if strategy == 'NO_SHARD':
        settings['ds_cfgs'] = _file(0, offload)
        return settings, [f'accelerate launch: NO_SHARD, which FSDP2 has not, is {settings["ds_cfgs"]} of DeepSpeed.']
    settings |= {'engine': 'fsdp', 'fsdp_reshard_after_forward': strategy not in KEEPS_GATHERED}
    if offload:
        settings['fsdp_cpu_offload'] = True
    notes = [
        f'accelerate launch: FSDP {strategy} is FSDP2 here (engine: fsdp), layer by layer as their architectures say; '
        'settings of wrapping, prefetching and state dicts are not read.'
    ]
    if strategy.startswith('HYBRID'):
        notes.append(f'accelerate launch: {strategy} shares weights among all ranks here, not within each machine.')
    return settings, notes


def _strategy(environ: Mapping[str, str]) -> str:
    if environ.get('FSDP_VERSION') == '2':
        return 'SHARD_GRAD_OP' if environ.get('FSDP_RESHARD_AFTER_FORWARD') == 'false' else 'FULL_SHARD'
    given = environ.get('FSDP_SHARDING_STRATEGY', '1')
    name = STRATEGIES[int(given) - 1] if given.isdigit() and 0 < int(given) <= len(STRATEGIES) else given
    if name not in STRATEGIES:
        raise SettingsError(
            [f"accelerate launch: fsdp_sharding_strategy '{given}' is none of {', '.join(STRATEGIES)}."]
        )
    return name


def _file(stage: int, offload: bool) -> str:
    if offload and stage < 2:
        raise SettingsError([f'accelerate launch: ZeRO stage {stage} offloads nothing; take stage 2 or 3.'])
    # Stage 1 shares the optimizer alone, which stage 2 does too.
    return f'ds_z{2 if stage == 1 else stage}{"_offload" if offload else ""}_config.json'
