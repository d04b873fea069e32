"""Reads, decodes, encodes and collates micro-batches in worker processes.

Workers are forked: they share the rows and the processor with the main process and start in milliseconds. They touch
no accelerator, run torch on one thread, and switch the tokenizers' own threads off, which don't survive a fork.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from align_anything.core.errors import AlignAnythingError
from align_anything.core.types import Batch, Example, Skipped
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.sampler import Sampler

Collate = Callable[[list[Example], list[Skipped]], Batch]


class Loader:
    """Batches of one rank, in an order that doesn't depend on the number of workers.

    Args:
        dataset: rows to Examples.
        sampler: which rows go into which micro-batch.
        collate: makes the Batch of a micro-batch, which may have no Examples; it runs in the worker.
        num_workers: worker processes, 0 to work in the main process.
        prefetch: micro-batches that each worker makes ahead.
    """

    def __init__(
        self, dataset: ExampleDataset, sampler: Sampler, collate: Collate, num_workers: int = 0, prefetch: int = 2
    ) -> None:
        self.dataset, self.sampler = dataset, sampler
        self._position = _Position(sampler)
        workers: dict[str, Any] = {}
        if num_workers > 0:
            workers = {
                'persistent_workers': True,
                'prefetch_factor': prefetch,
                'worker_init_fn': _start_worker,
                'multiprocessing_context': 'fork',
            }
        self._batches = DataLoader(
            _MicroBatches(dataset, collate),
            batch_sampler=self._position,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: the loader takes a seed whenever it starts, and a resumed run starts more often.
            generator=torch.Generator().manual_seed(0),
            **workers,
        )

    def steps_in(self, epoch: int) -> int | None:
        """Optimizer steps in that epoch, None for streams."""
        return self.sampler.steps_in(epoch)

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields this rank's Batches from optimizer step `start_step` of that epoch on.

        Raises:
            AlignAnythingError: of the class and with the message that it was raised with in the worker.
        """
        self._position.epoch, self._position.step = epoch, start_step
        for batch in self._batches:
            if isinstance(batch, AlignAnythingError):
                raise batch
            yield batch

    def endless(self, step: int) -> Iterator[Batch]:
        """Yields this rank's Batches from micro-batch `step` of the run on, epoch after epoch.

        For loaders with one micro-batch in each optimizer step.
        """
        epoch = 0
        while step >= self.steps_in(epoch):
            step -= self.steps_in(epoch)
            epoch += 1
        while True:
            yield from self.micro_batches(epoch, step)
            epoch, step = epoch + 1, 0

    def close(self) -> None:
        """Ends the workers now instead of when the interpreter exits; the loader can't be used after it."""
        del self._batches

    def steps(self, epoch: int, start_step: int = 0) -> Iterator[list[Batch]]:
        """Yields the Batches of one optimizer step at a time: a list of `accumulation`, on every rank alike."""
        batches = self.micro_batches(epoch, start_step)
        while step := list(islice(batches, self.sampler.shape.accumulation)):
            yield step


class _Position:
    """The batch sampler of the DataLoader: goes on from wherever it is put."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.epoch, self.step = sampler, 0, 0

    def __iter__(self) -> Iterator[tuple[int, list[Any]]]:
        epoch = self.epoch
        return ((epoch, rows) for rows in self.sampler.micro_batches(epoch, self.step))


class _MicroBatches:
    """Makes a micro-batch of rows of an epoch; the DataLoader calls `__getitems__` for what `_Position` yields."""

    def __init__(self, dataset: ExampleDataset, collate: Collate) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitems__(self, of_epoch: tuple[int, list[Any]]) -> Batch | AlignAnythingError:
        epoch, rows = of_epoch
        try:
            made = [self.dataset[row] for row in rows]
            examples = [item for item in made if isinstance(item, Example)]
            for example in examples:
                example.epoch = epoch
            return self.collate(examples, [item for item in made if isinstance(item, Skipped)])
        except AlignAnythingError as error:
            # Returned, not raised: torch would bury the message under the worker's traceback.
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    # Ctrl-C goes to all processes of a terminal; the trainer answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """Ends this worker when its trainer asks; a launcher's SIGTERM to all processes is for the trainer to answer.

    Were the workers to die of it, the trainer could not finish the step that it saves.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
