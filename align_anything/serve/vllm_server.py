"""`align-anything serve --use_vllm`: vLLM's own server in place of this process, with the arguments of the settings."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from align_anything.configs.resolve import Resolved
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger
from align_anything.models.adapter import Adapter, find_adapter
from align_anything.models.spec import Spec

logger = get_logger(__name__)

MODULE = 'vllm.entrypoints.openai.api_server'
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
NOWHERE = 'nowhere.invalid'
"""A host that can never be: the only one that vLLM may fetch media from."""
ENVIRONMENT = {'VLLM_MEDIA_URL_ALLOW_REDIRECTS': '0', 'VLLM_NO_USAGE_STATS': '1'}
NOT_IN_VLLM = ('modules_to_save', 'use_dora', 'trainable_token_indices', 'target_parameters', 'rank_pattern')


def run_vllm(resolved: Resolved, keys: Sequence[str]) -> None:
    """Becomes vLLM's server; with `--dry_run` logs what would be run. Raises SettingsError where it cannot serve."""
    from align_anything.trainers.runs.generator import open_spec

    if importlib.util.find_spec('vllm') is None:
        raise SettingsError(["vllm_cfgs.use_vllm: vLLM is not installed: pip install 'align-anything[vllm]'."])
    problems = []
    if len(keys) > 1:
        problems.append('api_key_file: the server of vLLM takes one key from the environment, and there are several.')
    if resolved.cfgs.data_cfgs.allow_urls:
        problems.append(
            'data_cfgs.allow_urls: the server of vLLM would fetch from private addresses too; leave it out.'
        )
    if problems:
        raise SettingsError(problems)
    # Its engine here would look at the machine; its server does that itself.
    plain = resolved.cfgs.vllm_cfgs.model_copy(update={'use_vllm': False})
    looked_at = replace(resolved, cfgs=resolved.cfgs.model_copy(update={'vllm_cfgs': plain}))
    _, _, spec = open_spec(looked_at)
    if spec.unit != 'token' or spec.emits:
        raise SettingsError(['vllm_cfgs.use_vllm: the server of vLLM answers in text alone; leave it out.'])
    if spec.not_in_vllm:
        raise SettingsError([f'vllm_cfgs.use_vllm: {spec.not_in_vllm}; leave it out.'])
    argv = vllm_arguments(resolved, spec)
    logger.info('%s', shlex.join(['python', *argv[1:]]))
    if resolved.dry_run:
        return
    environ = {**os.environ, **ENVIRONMENT, **({'VLLM_API_KEY': keys[0]} if keys else {})}
    os.execve(argv[0], argv, environ)


def vllm_arguments(resolved: Resolved, spec: Spec) -> list[str]:
    """Returns the command line of vLLM's server; no secret is on it. Raises SettingsError for an adapter it cannot use.

    The chat template in force is written to a file of its own, which stays.
    """
    from align_anything.serve.settings import name_of
    from align_anything.trainers.runs.settings import dtype_of

    cfgs, own = resolved.cfgs, resolved.algorithm
    models, settings = cfgs.model_cfgs, cfgs.vllm_cfgs
    source = models.model_name_or_path
    name, adapter = own.served_model_name or name_of(source), find_adapter(source)
    template = Path(tempfile.mkdtemp(prefix='align-anything-serve-')) / 'chat_template.jinja'
    template.write_text(spec.renderer.template)
    argv = [sys.executable, '-m', MODULE, '--model', source if adapter is None else adapter.require_base()]
    argv += ['--host', own.host, '--port', str(own.port)]
    argv += ['--served-model-name', name if adapter is None else f'{name}-base']
    argv += ['--max-model-len', str(settings.vllm_max_model_len or spec.max_length)]
    argv += ['--dtype', str(dtype_of(cfgs)).removeprefix('torch.'), '--seed', str(cfgs.train_cfgs.seed)]
    # How responses are sampled is said by requests, not by the checkpoint; and the template is that of training.
    argv += ['--generation-config', 'vllm', '--chat-template', str(template)]
    argv += ['--tensor-parallel-size', str(settings.vllm_tensor_parallel_size)]
    argv += ['--gpu-memory-utilization', str(settings.vllm_gpu_memory_utilization)]
    argv += ['--enable-prefix-caching' if settings.vllm_enable_prefix_caching else '--no-enable-prefix-caching']
    argv += ['--enforce-eager'] if settings.vllm_enforce_eager else []
    argv += ['--allowed-media-domains', NOWHERE]
    argv += ['--trust-remote-code'] if models.trust_remote_code else []
    argv += ['--mm-processor-kwargs', json.dumps(models.processor_kwargs)] if models.processor_kwargs else []
    argv += [] if adapter is None else _of_adapter(adapter, name)
    return argv + shlex.split(own.vllm_args or '')


def _of_adapter(adapter: Adapter, name: str) -> list[str]:
    strange = [key for key in NOT_IN_VLLM if adapter.settings.get(key)]
    rank = int(adapter.settings['r'])
    if strange or rank > RANKS[-1]:
        what = ', '.join(strange) or f'rank {rank}'
        raise SettingsError(
            [
                f'model_cfgs.model_name_or_path: the server of vLLM cannot use {what} of the adapter in '
                f'{adapter.folder}: merge it first (align-anything merge {adapter.folder} MERGED) and serve MERGED.'
            ]
        )
    fitting = next(known for known in RANKS if known >= rank)
    return ['--enable-lora', '--max-lora-rank', str(fitting), '--lora-modules', f'{name}={adapter.folder}']
