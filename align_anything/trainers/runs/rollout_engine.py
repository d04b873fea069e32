"""What generates the responses of a run: transformers or vLLM, the latter checked against the trainer at each sync."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.generate import Generating
from align_anything.algorithms.online import Online
from align_anything.configs.generation import GenerationRunCfgs
from align_anything.configs.online import OnlineRunCfgs, VLLMCfgs
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import world_size
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.types import Conversation, MediaKind, Piece
from align_anything.datasets.dataset import ExampleDataset
from align_anything.engines.base import Engine
from align_anything.engines.process_group import device_of_rank
from align_anything.models.adapter import bare_model, find_adapter
from align_anything.models.codecs.base import Codec
from align_anything.models.family import FamilySpec
from align_anything.models.handover import handed_over
from align_anything.models.pretrained_model import load_model
from align_anything.models.rope import fix_rope_tables
from align_anything.policies.token.collator import TokenCollator
from align_anything.rewards.live_codes import LiveCodes
from align_anything.rollouts.base import RolloutEngine, Sampling
from align_anything.rollouts.decoded import DecodedRollouts, said_with_media
from align_anything.rollouts.hf import HFRollouts
from align_anything.rollouts.probe import ProbedRollouts
from align_anything.rollouts.vllm import VLLMRollouts, WeightedEngine, check_vllm, check_vllm_emission
from align_anything.rollouts.vllm_client import Servers
from align_anything.rollouts.vllm_engine import Engine as VLLMEngine
from align_anything.rollouts.vllm_engine import VLLMOptions
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs import sampling as token_sampling
from align_anything.trainers.runs.acting import acting, require_acting
from align_anything.trainers.runs.rewarding import check_readable
from align_anything.trainers.runs.settings import dtype_of, precision_of
from align_anything.trainers.runs.token_models import with_saved_adapter

logger = get_logger(__name__)

GENERATED_AT_ONCE = 16
"""Responses, where the settings say no number."""
TOLERANCES = {'fp32': 0.01, 'bf16': 0.1, 'fp16': 0.1}


def check_rollouts(resolved: Resolved[OnlineRunCfgs, Online]) -> None:
    """Raises SettingsError for settings of the rollouts that cannot be obeyed."""
    cfgs = resolved.cfgs
    settings = cfgs.vllm_cfgs
    if not settings.use_vllm:
        return
    models = cfgs.model_cfgs
    problems = _problems_of_servers(settings) if settings.vllm_server_urls else _problems_here(settings)
    if settings.vllm_max_model_len is not None and settings.vllm_max_model_len < models.model_max_length:
        problems.append(
            f'vllm_cfgs.vllm_max_model_len = {settings.vllm_max_model_len} is less than model_cfgs.model_max_length '
            f'= {models.model_max_length}.'
        )
    if problems:
        raise SettingsError(problems)
    truncates, here = models.top_p < 1 or models.top_k > 0, settings.vllm_server_urls is None
    check_vllm(_options(cfgs), truncates=truncates, here=here)


def _problems_here(settings: VLLMCfgs) -> list[str]:
    engines, rest = divmod(world_size(), settings.vllm_tensor_parallel_size)
    if rest:
        return [
            f'vllm_cfgs.vllm_tensor_parallel_size = {settings.vllm_tensor_parallel_size} does not divide the '
            f'{world_size()} devices.'
        ]
    if settings.vllm_num_engines not in (None, engines):
        return [
            f'vllm_cfgs.vllm_num_engines = {settings.vllm_num_engines}: each device generates, so there are {engines}; '
            'leave it out.'
        ]
    return []


def _problems_of_servers(settings: VLLMCfgs) -> list[str]:
    servers, transfer = len(settings.vllm_server_urls), settings.vllm_server_transfer
    problems = []
    if transfer == 'nccl' and not torch.cuda.is_available():
        problems.append('vllm_cfgs.vllm_server_transfer: there is no GPU here for nccl; choose gloo or http.')
    if transfer != 'http' and importlib.util.find_spec('vllm') is None:
        problems.append(f'vllm_cfgs.vllm_server_transfer: {transfer} takes vLLM here too: pip install vllm, or http.')
    if settings.vllm_num_engines not in (None, servers):
        problems.append(
            f'vllm_cfgs.vllm_num_engines = {settings.vllm_num_engines}, but vllm_server_urls has {servers}: leave it '
            'out.'
        )
    if settings.vllm_tensor_parallel_size > 1 or settings.vllm_enable_sleep:
        problems.append(
            'vllm_cfgs: a server generates on devices of its own, as many as it is started for '
            '(--tensor-parallel-size, --data-parallel-size): leave out vllm_tensor_parallel_size and '
            'vllm_enable_sleep, or vllm_server_urls.'
        )
    return problems


def sampling_of(
    resolved: Resolved[OnlineRunCfgs, Online], pair: Pair, spec: FamilySpec, steps_of_rollout: int
) -> Sampling:
    """How responses are sampled.

    Raises SettingsError for what the model cannot write, or has no units of, and ModelError where its chat template
    cannot write the episodes of an environment.
    """
    sampling = token_sampling.sampling_of(resolved.cfgs.model_cfgs, pair, spec)
    weighed = resolved.algorithm.weighed_kinds
    token_sampling.check_kinds('train_cfgs.emitted_advantage_weights', weighed, sampling)
    written = [] if sampling.emit is None else [*sampling.emit.grids]
    check_readable(resolved.cfgs.reward_cfgs.reward_functions, written, spec.codes)
    if resolved.cfgs.vllm_cfgs.use_vllm:
        check_vllm_emission(spec, sampling)
    require_acting(resolved.cfgs, spec)
    if resolved.cfgs.vllm_cfgs.use_vllm:
        check_vllm_emission(spec, sampling)
    return sampling


def guided_if_asked(
    cfgs: OnlineRunCfgs, collate: TokenCollator, datasets: Sequence[ExampleDataset]
) -> tuple[TokenCollator, list[ExampleDataset]]:
    """The collator and the prompts of runs with guidance, see `sampling.guided_if_asked`; of others as they are."""
    return token_sampling.guided_if_asked(cfgs.model_cfgs, collate, datasets)


def open_rollouts(
    resolved: Resolved[OnlineRunCfgs, Online],
    policy: Engine,
    spec: FamilySpec,
    sampling: Sampling,
) -> tuple[RolloutEngine, Callable[[Piece], list[dict[str, Any]]]]:
    """Returns what generates responses with the weights of `policy`, and what says what a response says.

    Media are decoded by the codecs of the family. Every rank calls it.
    """
    codecs = open_codecs(spec, sampling, policy.device)
    rollouts = acting(_rollouts(resolved, policy, spec, sampling, codecs), resolved.cfgs, spec)
    return rollouts, partial(said_with_media, spec, sampling, codecs)


def _rollouts(
    resolved: Resolved[OnlineRunCfgs, Online],
    policy: Engine,
    spec: FamilySpec,
    sampling: Sampling,
    codecs: Mapping[MediaKind, Codec],
) -> RolloutEngine:
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    models = cfgs.model_cfgs
    if not cfgs.vllm_cfgs.use_vllm:
        batch_size = algorithm.per_device_prompt_batch_size * algorithm.num_generations
        return _by_transformers(cfgs, policy, spec, models.generation_batch_size or batch_size, codecs)
    weights = partial(handed_over, policy.policy.model, policy.gathered)
    engine = _vllm_engine(cfgs, spec, sampling)
    tolerance = cfgs.vllm_cfgs.vllm_probe_tolerance or TOLERANCES[precision_of(cfgs)]
    rollouts = with_media(VLLMRollouts(spec, weights, engine), codecs)
    return ProbedRollouts(rollouts, policy.infer, policy.policy.collate, policy.device, tolerance)


def _by_transformers(
    cfgs: RunCfgs, policy: Engine, spec: FamilySpec, batch_size: int, codecs: Mapping[MediaKind, Codec]
) -> RolloutEngine:
    rollouts = HFRollouts(
        bare_model(policy.policy.model),
        spec,
        dtype=dtype_of(cfgs),
        batch_size=batch_size,
        gathered=policy.gathered_weights,
    )
    return with_media(rollouts, codecs)


def sampling_of_answers(cfgs: RunCfgs, algorithm: Algorithm, pair: Pair, spec: FamilySpec) -> Sampling:
    """How the answers are sampled that `eval_tasks` measure in training on data."""
    return token_sampling.sampling_of_answers(cfgs, pair, spec)


def open_answers(cfgs: RunCfgs, policy: Engine, spec: FamilySpec, sampling: Sampling) -> RolloutEngine:
    """Returns what generates them with the weights of `policy`. Every rank calls it."""
    batch_size = cfgs.train_cfgs.per_device_eval_batch_size
    return _by_transformers(cfgs, policy, spec, batch_size, open_codecs(spec, sampling, policy.device))


def _vllm_engine(cfgs: OnlineRunCfgs, spec: FamilySpec, sampling: Sampling) -> WeightedEngine:
    """The engine of vLLM, here or on servers, without weights yet."""
    source, settings = cfgs.model_cfgs.model_name_or_path, cfgs.vllm_cfgs
    adapter = find_adapter(source)
    source, urls = source if adapter is None else adapter.require_base(), settings.vllm_server_urls
    options = replace(_options(cfgs), grammar=spec.codes is not None)
    backend = None if settings.vllm_server_transfer == 'http' else settings.vllm_server_transfer
    return (
        Servers(urls, source, options, settings.vllm_server_timeout, backend) if urls else VLLMEngine(source, options)
    )


def open_frozen(
    resolved: Resolved[GenerationRunCfgs, Generating], spec: FamilySpec, sampling: Sampling, live: bool
) -> tuple[RolloutEngine, Callable[[Conversation], Conversation]]:
    """Returns what generates responses with the weights of the checkpoint, and what prepares a conversation for it.

    Every rank calls it. vLLM is handed the weights once, adapters added in, by a copy on the CPU, which is let go then.
    `live` says whether prompts come whose media nothing was made of before: the codes of such are made as they come.
    """
    cfgs, device = resolved.cfgs, device_of_rank()
    codecs = open_codecs(spec, sampling, device)
    if not cfgs.vllm_cfgs.use_vllm:
        model = _frozen_model(cfgs, spec).to(device)
        batch_size = cfgs.model_cfgs.generation_batch_size or GENERATED_AT_ONCE
        rollouts = HFRollouts(bare_model(model), spec, dtype=dtype_of(cfgs), batch_size=batch_size)
        return acting(with_media(rollouts, codecs), cfgs, spec), _preparing(spec, device, live)
    engine = _vllm_engine(cfgs, spec, sampling)
    rollouts = VLLMRollouts(spec, partial(handed_over, _frozen_model(cfgs, spec), dict), engine)
    rollouts.sync(0)
    rollouts.weights = _let_go
    return acting(with_media(rollouts, codecs), cfgs, spec), _preparing(spec, device, live)


def _preparing(spec: FamilySpec, device: torch.device, live: bool) -> Callable[[Conversation], Conversation]:
    """What puts codes beside the media of a conversation that the model reads as such."""
    if spec.codes is None or not live:
        return lambda conversation: conversation
    codes = LiveCodes(spec.codes, device)
    return lambda conversation: codes.beside([conversation])[0]


def _frozen_model(cfgs: GenerationRunCfgs, spec: FamilySpec) -> nn.Module:
    source = cfgs.model_cfgs.model_name_or_path
    model = load_model(
        source,
        spec.components,
        dtype=dtype_of(cfgs),
        attn_implementation=cfgs.model_cfgs.attn_implementation,
        trust_remote_code=cfgs.model_cfgs.trust_remote_code,
    )
    fix_rope_tables(model, spec.max_length)
    return with_saved_adapter(cfgs, spec, model, source, dtype_of(cfgs)).requires_grad_(False).eval()


def _let_go() -> Iterator[tuple[str, Tensor]]:
    return iter(())


def open_codecs(spec: FamilySpec, sampling: Sampling, device: torch.device) -> dict[MediaKind, Codec]:
    """Loads the codecs of the media that responses may hold, those that decode; a run keeps them."""
    if sampling.emit is None:
        return {}
    rules = {kind: spec.codes.rules[kind] for kind in sampling.emit.grids}
    for kind in (kind for kind, own in rules.items() if not own.decodes):
        logger.warning(
            'the codec of %s media in %s does not decode: responses hold their codes, which rewards on media and '
            'reports cannot show',
            kind,
            rules[kind].folder,
        )
    return {kind: own.open(device) for kind, own in rules.items() if own.decodes}


def with_media(rollouts: RolloutEngine, codecs: Mapping[MediaKind, Codec]) -> RolloutEngine:
    """The engine, with the media in its responses decoded where there are codecs."""
    return DecodedRollouts(rollouts, codecs) if codecs else rollouts


def _options(cfgs: OnlineRunCfgs) -> VLLMOptions:
    settings = cfgs.vllm_cfgs
    models = cfgs.model_cfgs
    return VLLMOptions(
        dtype=str(dtype_of(cfgs)).removeprefix('torch.'),
        max_length=settings.vllm_max_model_len or models.model_max_length,
        reweighs=(models.temperature, models.repetition_penalty) != (1, 1),
        tensor_parallel_size=settings.vllm_tensor_parallel_size,
        memory=settings.vllm_gpu_memory_utilization,
        eager=settings.vllm_enforce_eager,
        prefix_caching=settings.vllm_enable_prefix_caching,
        sleeps=settings.vllm_enable_sleep,
        processor_kwargs=models.processor_kwargs,
        trust_remote_code=models.trust_remote_code,
    )
