"""vLLM over several devices of a server: copies of the model beside each other, each split over some of them."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from align_anything.core.errors import ModelError, TrainingError
from align_anything.rollouts.vllm_engine import (
    Generated,
    Request,
    RequestError,
    VLLMOptions,
    arguments_of_engine,
    dead,
    generated_of,
)
from align_anything.rollouts.weight_group import PeerError, Shapes

WORKER = 'align_anything.rollouts.vllm_worker.TakesWeights'
IN_MEMORY = Path('/dev/shm')
T = TypeVar('T')


class ParallelEngine:
    """Copies of a model in processes of vLLM's own, with the weights that every one of their workers is handed.

    Requests of a group go to one copy, which has computed their beginning; vLLM spreads the others.

    Args:
        source: folder or hub name of the model, for its configuration and processor.
        options: how each copy runs; its `tensor_parallel_size` is how many devices a copy is split over.
        copies: how many there are.
    """

    def __init__(self, source: str, options: VLLMOptions, copies: int) -> None:
        self.source, self.options, self.copies = source, options, copies
        self._llm: Any = None
        self._loop = asyncio.new_event_loop()
        self._finished: SimpleQueue[tuple[str, Generated | Exception]] = SimpleQueue()
        self._numbers = count()

    @property
    def started(self) -> bool:
        """Whether its processes run."""
        return self._llm is not None

    def start(self) -> None:
        """Starts them, without weights yet. Raises ModelError when vLLM does not start."""
        if self.options.grammar:
            raise ModelError('a server of several devices writes no media: start one for each device.')
        if not torch.cuda.is_available():
            os.environ.setdefault('VLLM_CPU_OMP_THREADS_BIND', 'nobind')
        os.environ.setdefault('VLLM_LOGGING_LEVEL', 'CRITICAL')
        Thread(target=self._loop.run_forever, name='vllm', daemon=True).start()
        try:
            self._llm = self._done(self._opened())
        except Exception as error:  # vLLM refuses models and machines with errors of every kind.
            raise ModelError(f'vLLM does not start with {self.source}: {error}') from error

    def join(self, host: str, port: int, rank: int, size: int, backend: str, seconds: float) -> None:
        """Lets each worker join the group that feeds this server, the first as number `rank`. Raises PeerError."""
        self._on_workers('join_weight_group', (host, port, rank, size, backend, seconds), PeerError)

    def begin_weights(self) -> None:
        """Is told before the first chunk of new weights."""
        self._on_workers('begin_weights', (), TrainingError)

    def receive(self, shapes: Shapes, backend: str, seconds: float) -> None:
        """Lets each worker take a chunk that the group sends. Raises PeerError."""
        told = [(name, kind, list(shape)) for name, kind, shape in shapes]
        self._on_workers('receive_weights', (told, backend, seconds), PeerError)

    def read(self, tensors: Mapping[str, Tensor]) -> None:
        """Gives a chunk to each worker, by way of a file in memory."""
        folder = IN_MEMORY if IN_MEMORY.is_dir() else None
        with tempfile.NamedTemporaryFile(dir=folder, suffix='.safetensors') as file:
            save_file(dict(tensors), file.name)
            self._on_workers('read_weights', (file.name,), TrainingError)

    def use(self) -> None:
        """Generates with the weights that came. Raises ModelError when vLLM does not know the model or one of them."""
        self._on_workers('use_weights', (), ModelError)
        # What was computed with the old ones.
        self._done(self._llm.reset_prefix_cache())
        self._done(self._llm.reset_encoder_cache())
        self._done(self._llm.reset_mm_cache())

    def begin(self, requests: Sequence[Request]) -> list[str]:
        """As `vllm_engine.Engine.begin`."""
        names = [f'aa{next(self._numbers)}' for _ in requests]
        self._done(self._begun(names, requests))
        return names

    def step(self) -> dict[str, Generated]:
        """Waits until something is finished; returns what is, by name. Raises TrainingError if vLLM dies."""
        found = [self._finished.get()]
        try:
            while True:
                found.append(self._finished.get_nowait())
        except Empty:
            pass
        for _, outcome in found:
            if isinstance(outcome, Exception):
                raise dead(outcome) from outcome
        return dict(found)

    def close(self) -> None:
        """Ends its processes."""
        if self._llm is not None:
            self._llm.shutdown()

    async def _opened(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        copies = self.copies * self.options.tensor_parallel_size
        given = arguments_of_engine(self.source, self.options, copies)
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(**given, data_parallel_size=self.copies, load_format='dummy', worker_extension_cls=WORKER)
        )

    async def _begun(self, names: Sequence[str], requests: Sequence[Request]) -> None:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        try:
            last = RequestOutputKind.FINAL_ONLY
            sampling = [SamplingParams(**request.parameters, output_kind=last) for request in requests]
        except (TypeError, ValueError) as error:
            raise RequestError(f'vLLM cannot sample in this way: {error}') from error
        answers = []
        try:
            for name, request, parameters in zip(names, requests, sampling, strict=True):
                copy = None if request.group is None else request.group % self.copies
                answers.append(await self._llm.add_request(name, request.prompt, parameters, data_parallel_rank=copy))
        except (ValueError, VLLMValidationError) as error:
            await self._llm.abort(names[: len(answers)])
            raise RequestError(f'vLLM refuses a request of this rollout: {error}') from error
        except Exception as error:  # Whatever an engine dies of.
            raise dead(error) from error
        for name, answer in zip(names, answers, strict=True):
            own = self._loop.create_task(answer.get())
            own.add_done_callback(lambda task, name=name: self._file(name, task))

    def _file(self, name: str, task: asyncio.Task[Any]) -> None:
        error = task.exception()
        self._finished.put((name, generated_of(task.result()) if error is None else TrainingError(str(error))))

    def _on_workers(self, method: str, given: tuple[Any, ...], kind: type[TrainingError] | type[ModelError]) -> None:
        try:
            self._done(self._llm.collective_rpc(method, args=given))
        except Exception as error:  # What is raised in another process arrives as an error of vLLM's.
            raise kind(
                f'{self.source} over {self.copies * self.options.tensor_parallel_size} devices: {error}'
            ) from error

    def _done(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()
