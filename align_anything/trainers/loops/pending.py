"""The rollout that is generated ahead, while the one before it is trained on (one-step-off asynchronous rollouts)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from align_anything.algorithms.online import Online
from align_anything.configs.online import OnlineRunCfgs
from align_anything.core.distributed import barrier, rank
from align_anything.core.types import Example, Piece, Response
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.episodes import Episodes
from align_anything.rollouts.probe import ProbedRollouts
from align_anything.rollouts.saved import plain, restored

Responses = list[list[Response]]


class Pending:
    """The responses that are generated ahead, if any, by a thread; nothing else may generate until `wait`.

    Args:
        device: where they are generated.
        decode: what says what a response says, which is not saved: its media are no tensors.
        episodes: what generates them, where they are episodes, and knows which of them failed.
    """

    def __init__(
        self,
        device: torch.device,
        decode: Callable[[Piece], list[dict[str, Any]]],
        episodes: Episodes | None = None,
    ) -> None:
        self._decode, self._episodes = decode, episodes
        self.seconds = 0.0  # that generating the last ones took
        # On a CPU, loops in a new thread run on another number of cores until it first asks torch for theirs. vLLM
        # counts them before and after, and ends when they differ.
        self._thread = ThreadPoolExecutor(1, initializer=torch.get_num_threads)
        self._stream = torch.cuda.Stream(device) if device.type == 'cuda' else None
        self._future: Future[Responses] | None = None
        self._generated: Responses | None = None

    def begin(self, rollouts: ProbedRollouts | Episodes, examples: Sequence[Example], sampling: Sampling) -> None:
        """Begins to generate with the weights that were handed over last. Every rank calls it: a probe comes first."""
        rollouts.probe(examples, sampling)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._future = self._thread.submit(self._generate, rollouts, examples, sampling)

    def wait(self) -> None:
        """Returns when no rank generates any more. Every rank calls it. Raises what went wrong in the thread."""
        if self._future is not None:
            self._generated, self._future = self._future.result(), None
            # Ranks may generate with the same server, whose weights must not change before all have.
            barrier()

    def take(self) -> Responses | None:
        """Returns what was generated ahead, once `wait` is over, and forgets it; None where nothing was."""
        self.wait()
        taken, self._generated = self._generated, None
        return taken

    def save_state(self, folder: Path) -> None:
        """Writes what this rank has generated ahead, once `wait` is over."""
        self.wait()
        if self._generated is not None:
            records = [
                [{**vars(response), 'parts': [], 'episode': plain(response.episode)} for response in responses]
                for responses in self._generated
            ]
            untold = None if self._episodes is None else plain(self._episodes.untold)
            torch.save({'responses': records, 'untold': untold}, _file(folder))

    def load_state(self, folder: Path) -> None:
        """Takes what this rank had generated ahead when the checkpoint was written."""
        if _file(folder).exists():
            saved = torch.load(_file(folder), weights_only=True)
            if self._episodes is not None:
                self._episodes.untold = restored(saved['untold'])
            self._generated = [
                [Response(**{**record, 'episode': restored(record['episode'])}) for record in responses]
                for responses in saved['responses']
            ]
            for response in chain.from_iterable(self._generated):
                episode = response.episode
                response.parts = self._decode(response) if episode is None else episode.turns[-1].parts

    def close(self) -> None:
        """Ends the thread, when what it is generating is there."""
        self._thread.shutdown()

    def _generate(
        self, rollouts: ProbedRollouts | Episodes, examples: Sequence[Example], sampling: Sampling
    ) -> Responses:
        started = time.perf_counter()
        # On a stream of its own, which the kernels of training do not hold up. A thread has its own current device too.
        with torch.cuda.stream(self._stream):
            found = rollouts.generate(examples, sampling)
            if self._stream is not None:
                self._stream.synchronize()
        self.seconds = time.perf_counter() - started
        return found


def problems_of_generating_ahead(cfgs: OnlineRunCfgs, algorithm: Online) -> list[str]:
    """What settings keep responses from being generated ahead, where they ask for it."""
    settings = cfgs.vllm_cfgs
    reasons = {
        f'what it generates is of older weights than those in training, for which {algorithm.name} does not make up; '
        'that takes train_cfgs.rollout_correction_cap, and a number for it.': not algorithm.corrects,
        'dynamic_sampling_rounds generates again once the first responses are rewarded; set it to 0.': bool(
            algorithm.further_batches
        ),
        'vllm_enable_sleep gives away, during the update, the memory that generates; set it to False.': (
            settings.vllm_enable_sleep
        ),
        'devices that share weights (vllm_tensor_parallel_size) talk while they generate, which updates do too; set it '
        'to 1.': settings.vllm_tensor_parallel_size > 1,
    }
    return [f'vllm_cfgs.vllm_async: {reason}' for reason, holds in reasons.items() if settings.vllm_async and holds]


def _file(folder: Path) -> Path:
    return folder / f'pending_rank{rank()}.pt'
