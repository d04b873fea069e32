"""How well devices are used, and who holds the others up."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median

from torch import nn

from align_anything.core.distributed import all_gather_object, is_main, world_size
from align_anything.core.flops import Flops
from align_anything.core.logging import get_logger
from align_anything.datasets.balancing import unevenness
from align_anything.trainers.loops.own_time import OwnTime

logger = get_logger(__name__)

TERA = 1e12
OWN = ('data', 'generation', 'reward')
"""What each rank does by itself, while those that are done wait."""
AHEAD = 'generation_ahead'
LOOKED_AT = 5
"""Reports before anything is warned of: the first ones wait for workers to start and for kernels."""
HELD_UP = 0.2
"""Share of the time from which on something is worth a warning."""
TELLING = 5.0
"""Seconds that must have been lost by then, so that tiny runs are left alone."""
BUSY = 1.2
"""Work of the busiest rank over the mean from which on it is worth a warning."""
TIMES = 1.5
"""How many times as long as the others a rank takes for the same, from which on it is named."""
TIMED_EVERY, TIMED = 5, 3
"""Of so many reports the layers of one are timed, and of so many of these a rank is judged."""
ADVICE = {
    'data': 'Raise data_cfgs.num_workers, or keep what is prepared (data_cfgs.sample_cache_dir, '
    'model_cfgs.feature_cache_dir)',
    'reward': 'Give rewards a service of their own (reward_cfgs), or make them quicker',
    'work': 'Fill micro-batches by tokens (train_cfgs.max_length_per_batch), which gives ranks equal work',
    'slow': 'Look at what else runs there, and at the clock and the heat of its device (nvidia-smi)',
    'wait': 'Shorten the longest responses (model_cfgs.max_new_tokens), or generate ahead (vllm_cfgs.vllm_async)',
}


@dataclass
class Meter:
    """Says how many operations a device does a second, and what the time of steps goes to. Every rank calls it.

    Attributes:
        peak: operations that a device can do a second at best; None where that is not known.
        warned: what was warned of already.
    """

    peak: float | None = None
    warned: set[str] = field(default_factory=set)
    _reports: int = 0
    _took: float = 0.0
    _lost: dict[str, float] = field(default_factory=dict)
    _work: list[float] = field(default_factory=list)
    _each: dict[str, list[float]] = field(default_factory=dict)
    _own: OwnTime = field(default_factory=OwnTime)
    _timed: list[list[float]] = field(default_factory=list)

    def timing(self, model: nn.Module) -> AbstractContextManager[None]:
        """Around the updates of a step that is reported, of `model`: now and then it times the layers of each rank."""
        due = world_size() > 1 and self._reports % TIMED_EVERY == TIMED_EVERY - 1
        return self._own.watching(model) if due else nullcontext()

    def read(
        self, flops: Flops, computed: float, took: float, seconds: Mapping[str, float], first_pass: bool = False
    ) -> dict[str, float]:
        """Returns what is told of one report, the same on every rank.

        Args:
            flops: of this rank's updates.
            computed: the seconds that they took.
            took: those of the whole step.
            seconds: those of each phase on this rank; `data` is waiting for rows.
            first_pass: whether what later passes over the rows read is still being made, which holds up this one alone.
        """
        gathered = all_gather_object((flops.model, flops.again, dict(seconds), self._own.take(), socket.gethostname()))
        work, again, phases, own_seconds, nodes = zip(*gathered, strict=True)
        # What is generated ahead takes no time of the step.
        names = [name for name in phases[0] if took and name != AHEAD]
        shares = {f'share/{name}': sum(own.get(name, 0.0) for own in phases) / len(phases) / took for name in names}
        waited = {
            name: max(own[name] for own in phases) - sum(own[name] for own in phases) / len(phases)
            for name in OWN
            if name in names
        }
        found = {**shares, **({'share/wait': sum(waited.values()) / took} if world_size() > 1 and waited else {})}
        if sum(work) and computed:
            achieved = sum(work) / len(work) / computed
            found['tflops'] = achieved / TERA
            found |= {} if self.peak is None else {'mfu': achieved / self.peak}
            found |= {'recomputed': sum(again) / sum(work)} if sum(again) else {}
            found |= {'busiest_rank': unevenness(work)} if world_size() > 1 else {}
        self._look(took, phases, waited, work, nodes, first_pass)
        self._look_at_pace(own_seconds, work, nodes)
        return found

    def _look(
        self,
        took: float,
        phases: Sequence[Mapping[str, float]],
        waited: Mapping[str, float],
        work: Sequence[float],
        nodes: Sequence[str],
        first_pass: bool,
    ) -> None:
        self._reports += 1
        if self._reports == 1:
            return
        slowest = {name: max(own.get(name, 0.0) for own in phases) for name in ('data', 'reward')}
        data = 0.0 if first_pass else slowest['data']
        lost = {**slowest, 'data': data, 'wait': waited.get('generation', 0.0)}
        self._took += took
        for name, seconds in lost.items():
            self._lost[name] = self._lost.get(name, 0.0) + seconds
        for name in slowest:
            before = self._each.get(name, [0.0] * len(phases))
            self._each[name] = [sum(pair) for pair in zip(before, (own.get(name, 0.0) for own in phases), strict=True)]
        self._work = [sum(pair) for pair in zip(self._work or [0.0] * len(work), work, strict=True)]
        if self._reports < LOOKED_AT:
            return
        says = {
            'data': 'the loader holds the run up: {} of {:.0f} seconds went to waiting for rows',
            'reward': 'rewards hold the run up: {} of {:.0f} seconds went to them',
            'wait': 'ranks wait for the one that generates longest: {} of {:.0f} seconds, in the mean',
        }
        for name, sentence in says.items():
            if self._lost[name] > max(TELLING, HELD_UP * self._took):
                said = sentence.format(f'{self._lost[name] / self._took:.0%}', self._took)
                self._warn(name, said + self._of_one(self._each.get(name, []), nodes))
        uneven = unevenness(self._work)
        if uneven > BUSY and (uneven - 1) * self._took > TELLING:
            busiest = max(range(len(self._work)), key=self._work.__getitem__)
            self._warn('work', f'rank {busiest} holds the others up: it has {uneven:.2f} of the mean work of ranks')

    def _of_one(self, seconds: Sequence[float], nodes: Sequence[str]) -> str:
        """Names the rank that takes so much longer than the others that they wait for it alone."""
        found = _slowest(seconds) if len(seconds) > 1 else None
        if found is None:
            return ''
        number, others = found
        return f', on rank {number} ({nodes[number]}); on the others {others / self._took:.0%}'

    def _look_at_pace(self, seconds: Sequence[float], work: Sequence[float], nodes: Sequence[str]) -> None:
        """Compares what each rank takes for the same work, where the layers of this report were timed."""
        if len(seconds) < 2 or not all(seconds) or not all(work):
            return
        self._timed.append([own / done for own, done in zip(seconds, work, strict=True)])
        # The least of the last: what disturbs a rank once is not its pace.
        paces = [min(own) for own in zip(*self._timed[-TIMED:], strict=True)]
        found = _slowest(paces)
        if len(self._timed) < TIMED or found is None:
            return
        number, others = found
        if (1 - others / paces[number]) * self._took > TELLING:
            times = f'{paces[number] / others:.1f} times as long as the others'
            self._warn(
                'slow', f'rank {number} on {nodes[number]} holds the others up: it computes {times} for the same work'
            )

    def _warn(self, name: str, sentence: str) -> None:
        if name not in self.warned and is_main():
            logger.warning('%s. %s.', sentence, ADVICE[name])
        self.warned.add(name)


def _slowest(seconds: Sequence[float]) -> tuple[int, float] | None:
    """The one that takes a multiple of what the others do, and what those take in the median; None without such."""
    number = max(range(len(seconds)), key=seconds.__getitem__)
    others = median(own for other, own in enumerate(seconds) if other != number)
    return (number, others) if seconds[number] > TIMES * others else None
