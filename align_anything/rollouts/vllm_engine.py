"""vLLM itself: one engine in this process, whose weights are what it was handed last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from align_anything.core.distributed import all_gather_object, barrier, rank, ranks_of_machine, subgroup
from align_anything.core.errors import ModelError, TrainingError
from align_anything.rollouts.vllm_grammar import LOGPROBS_MODE, grammar_processor

Named = Iterator[tuple[str, Tensor]]
CPU_BLOCK = 32


@dataclass(frozen=True)
class VLLMOptions:
    """What vLLM is started with.

    Attributes:
        dtype: of its weights and activations, such as `bfloat16`.
        max_length: tokens of the longest prompt with its response.
        reweighs: whether responses to come have a temperature or a repetition penalty other than 1.
        grammar: whether requests bring a grammar, as those to a model that writes media do.
        tensor_parallel_size: ranks that share one copy of the weights.
        memory: share of the device's memory that it takes. On a CPU it is one of the memory that is free, for keys and
            values, which the ranks of the machine divide.
        eager: whether it runs without captured graphs.
        prefix_caching: whether it keeps what prompts have in common.
        sleeps: whether it gives its memory back between rollouts.
        processor_kwargs: arguments of the processor.
        trust_remote_code: whether code out of the checkpoint may run.
    """

    dtype: str
    max_length: int
    reweighs: bool = False
    grammar: bool = False
    tensor_parallel_size: int = 1
    memory: float = 0.3
    eager: bool = True
    prefix_caching: bool = True
    sleeps: bool = False
    processor_kwargs: Mapping[str, Any] | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Request:
    """A prompt in vLLM's form, with placeholders and decoded media, and the arguments of its `SamplingParams`.

    `group` is a number that prompts have in common which begin alike; None for one that is alone.
    """

    prompt: dict[str, Any]
    parameters: dict[str, Any]
    group: int | None = None


@dataclass(frozen=True)
class Generated:
    """The prompt as the engine read it, and the token ids and log-probabilities of each response.

    `cached` is how many tokens of the prompt it had computed before, and did not compute again.
    """

    prompt_ids: list[int]
    responses: list[tuple[list[int], list[float]]]
    cached: int = 0


class RequestError(TrainingError):
    """A request that vLLM refuses. It goes on with others."""


class Engine:
    """An engine that starts when it is handed weights for the first time.

    Args:
        source: folder or hub name of the model, for its configuration and processor.
        options: how it runs.
    """

    def __init__(self, source: str, options: VLLMOptions) -> None:
        self.source, self.options = source, options
        self._llm: Any = None
        self._asleep: set[str] = set()
        self._shared = options.tensor_parallel_size > 1
        self._peers = subgroup(options.tensor_parallel_size) if self._shared else None

    @property
    def started(self) -> bool:
        """Whether it has weights."""
        return self._llm is not None

    def load(self, named: Callable[[], Named]) -> None:
        """Takes weights, by the names of checkpoints. Ranks that share an engine call it together.

        Raises ModelError when vLLM does not start, or does not know the model or a weight of it.
        """
        if self._llm is None:
            self._llm = self._started(named)
            return
        self._wake('weights')
        try:
            self._llm.collective_rpc('reload_weights', kwargs={'weights_iterator': named()})
        except (ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f'vLLM does not take the weights of {self.source}: {error}') from error
        self._llm.apply_model(repack_heads)
        # What was computed with the old weights. An image that was cached already has no features any more.
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self._llm.llm_engine.reset_mm_cache()

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Returns what is generated for each request. Ranks that share an engine call it together, each with its own.

        Raises RequestError when vLLM refuses a request, and TrainingError when the engine dies.
        """
        self._wake('weights', 'kv_cache')
        # An engine of several ranks sees the requests of all of them on each.
        shared = all_gather_object(list(requests), self._peers) if self._shared else [list(requests)]
        names = self.begin([request for own in shared for request in own])
        found: dict[str, Generated] = {}
        while len(found) < len(names):
            found |= self.step()
        before = sum(len(own) for own in shared[: rank() % self.options.tensor_parallel_size])
        return [found[name] for name in names[before : before + len(requests)]]

    def begin(self, requests: Sequence[Request]) -> list[str]:
        """Adds requests to those that run, and returns a name for each. Raises RequestError when vLLM refuses one."""
        import vllm
        from vllm.exceptions import VLLMValidationError

        try:
            sampling = [vllm.SamplingParams(**request.parameters) for request in requests]
        except (TypeError, ValueError) as error:
            raise RequestError(f'vLLM cannot sample in this way: {error}') from error
        try:
            begun = self._llm.enqueue([request.prompt for request in requests], sampling, use_tqdm=False)
        except (ValueError, VLLMValidationError) as error:
            raise RequestError(f'vLLM refuses a request of this rollout: {error}') from error
        except Exception as error:  # Whatever an engine dies of.
            raise dead(error) from error
        return [_name(own) for own in begun]

    def step(self) -> dict[str, Generated]:
        """Goes on by a token with all that run; returns what is finished, by name. Raises TrainingError if it dies."""
        if not self._llm.llm_engine.has_unfinished_requests():
            raise TrainingError('vLLM lost a request of this rollout. Go on from the last checkpoint with resume.')
        try:
            found = self._llm.llm_engine.step()
        except Exception as error:  # Whatever an engine dies of.
            raise dead(error) from error
        return {_name(output.request_id): generated_of(output) for output in found if output.finished}

    def sleep(self) -> None:
        """Gives the memory of the GPU back until weights come or a rollout begins, where the options ask for it."""
        if self.options.sleeps and not self._asleep:
            # Level 2 would also drop buffers, which no weights bring back.
            self._llm.sleep(level=1)
            self._asleep = {'weights', 'kv_cache'}

    def _wake(self, *tags: str) -> None:
        """Takes back what `sleep` gave back, by tag, each once: memory that is awake would be mapped a second time."""
        for tag in self._asleep.intersection(tags):
            self._llm.wake_up(tags=[tag])
            self._asleep.remove(tag)

    def _started(self, named: Callable[[], Named]) -> Any:
        import vllm

        options = self.options
        # In this process: weights are handed over as they lie in memory.
        os.environ['VLLM_ENABLE_V1_MULTIPROCESSING'] = '0'
        if not torch.cuda.is_available():
            # The cores belong to the trainer too.
            os.environ.setdefault('VLLM_CPU_OMP_THREADS_BIND', 'nobind')
        # As it dies it would log all prompts and pixels; what it dies of is told here.
        os.environ.setdefault('VLLM_LOGGING_LEVEL', 'CRITICAL')
        parallel = options.tensor_parallel_size
        if parallel > 1 and not torch.cuda.is_available():
            _clear_shared_memory()
        try:
            return vllm.LLM(
                **arguments_of_engine(self.source, options),
                distributed_executor_backend='external_launcher' if parallel > 1 else None,
                load_format=_register_loader(named),
                logits_processors=[grammar_processor()] if options.grammar else None,
            )
        except Exception as error:  # vLLM refuses models and machines with errors of every kind.
            raise ModelError(f'vLLM does not start with {self.source}: {error}') from error


def arguments_of_engine(source: str, options: VLLMOptions, copies: int = 1) -> dict[str, Any]:
    """Returns how vLLM runs, as its classes take it. Without a GPU, `copies` of the model share the host's memory."""
    return {
        'model': source,
        'tokenizer': source,
        'dtype': options.dtype,
        'max_model_len': options.max_length,
        'tensor_parallel_size': options.tensor_parallel_size,
        **_memory(options.memory / copies if not torch.cuda.is_available() else options.memory),
        **_blocks(),
        'enforce_eager': options.eager,
        'enable_prefix_caching': options.prefix_caching,
        # A prompt in pieces turns its seeded generator back, which those of a CPU cannot.
        'enable_chunked_prefill': torch.cuda.is_available(),
        'enable_sleep_mode': options.sleeps,
        'mm_processor_kwargs': dict(options.processor_kwargs or {}) or None,
        'trust_remote_code': options.trust_remote_code,
        # No defaults out of the generation_config.json of the checkpoint.
        'generation_config': 'vllm',
        'logprobs_mode': _logprobs_mode(options),
        'disable_log_stats': True,
        'seed': 0,
    }


def _logprobs_mode(options: VLLMOptions) -> str:
    """Of the distribution before top-p and top-k: either these or what else changes it are not there."""
    if options.grammar:
        return LOGPROBS_MODE
    return 'processed_logprobs' if options.reweighs else 'raw_logprobs'


def _name(request_id: str) -> str:
    """The name of a request without what vLLM adds to it inside."""
    return request_id.partition('-')[0]


def dead(error: Exception) -> TrainingError:
    return TrainingError(
        f'vLLM ended in the middle of a rollout: {error!r}. Go on from the last checkpoint with resume.'
    )


def generated_of(output: Any) -> Generated:
    responses = []
    for response in output.outputs:
        ids = list(response.token_ids)
        logprobs = [step[token].logprob for step, token in zip(response.logprobs, ids, strict=True)]
        responses.append((ids, logprobs))
    return Generated(list(output.prompt_token_ids), responses, output.num_cached_tokens or 0)


def _clear_shared_memory() -> None:
    """Removes the shared memory that an earlier run left on this machine. Every rank calls it.

    On a CPU vLLM gives it the same name in every run under a launcher of ours, never removes it, and does not start
    while it is there. A run that goes on elsewhere keeps what it has mapped.
    """
    for path in Path('/dev/shm').glob('*-cpushm_[0-9]*'):
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
    barrier()


def _memory(share: float) -> dict[str, Any]:
    if torch.cuda.is_available():
        return {'gpu_memory_utilization': share}
    # vLLM would take the share of all memory there is, less what this process holds already.
    return {'kv_cache_memory_bytes': int(share * psutil.virtual_memory().available / ranks_of_machine())}


def _blocks() -> dict[str, Any]:
    """How many tokens of a prompt are kept together. On a CPU vLLM's own number is longer than most turns."""
    return {} if torch.cuda.is_available() else {'block_size': CPU_BLOCK}


def _register_loader(named: Callable[[], Iterable[tuple[str, Tensor]]]) -> str:
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


def repack_heads(model: nn.Module) -> None:
    """Lets output heads see what embeddings they are tied to hold now: on a CPU they compute with a packed copy."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
