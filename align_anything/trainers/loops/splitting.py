"""How responses are split into optimizer steps and micro-batches: equally many on every rank, some of them empty.

Where micro-batches go by tokens, the responses of a step may change the rank, so that none has more work than others,
and so may those that are scored before the steps: their scores come back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from align_anything.algorithms.online import Online
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object, rank, world_size
from align_anything.core.types import Cost, Example, Piece
from align_anything.datasets.balancing import Balancer

Size = Callable[[Sequence[Example]], int]
"""What a micro-batch takes of `max_length_per_batch`."""
CostOf = Callable[[Example], Cost]
Found = TypeVar('Found')


def micro_batches_of(cfgs: RunCfgs, algorithm: Online) -> int:
    """Micro-batches by number of a device in one pass over a rollout, as many on each."""
    responses = algorithm.per_device_prompt_batch_size * algorithm.trained_responses
    return -(-responses // cfgs.train_cfgs.per_device_train_batch_size)


def steps_of_pass(cfgs: RunCfgs, algorithm: Online) -> int:
    """Optimizer steps of one pass over a rollout."""
    return -(-micro_batches_of(cfgs, algorithm) // cfgs.train_cfgs.gradient_accumulation_steps)


def steps_of_rollout(cfgs: RunCfgs, algorithm: Online) -> int:
    """Optimizer steps that follow one rollout."""
    return algorithm.update_iters * steps_of_pass(cfgs, algorithm)


def split_into_steps(
    examples: Sequence[Example], cfgs: RunCfgs, algorithm: Online, size: Size, cost: CostOf
) -> list[list[list[Example]]]:
    """The micro-batches of each optimizer step in one pass over the responses. Every rank calls it.

    Which responses a step has goes by their number, also where its micro-batches go by tokens: the number of steps is
    known before the run. Ranks exchange responses of such steps for equal work, by `cost`, but those that share rows.
    """
    train = cfgs.train_cfgs
    responses, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if train.max_length_per_batch is None:
        number = micro_batches_of(cfgs, algorithm)
        micro_batches = split(examples, responses, number)
        return [micro_batches[start : start + accumulation] for start in range(0, number, accumulation)]
    steps = split(examples, responses * accumulation, steps_of_pass(cfgs, algorithm))
    if exchanges(cfgs):
        steps = [exchanged(step, cost, keep_groups=algorithm.compares).examples for step in steps]
    return _equally_filled(steps, train.max_length_per_batch, size, keep_groups=algorithm.compares)


def split_for_scoring(
    examples: Sequence[Example], cfgs: RunCfgs, algorithm: Online, size: Size, cost: CostOf
) -> tuple[list[list[Example]], Exchange]:
    """The micro-batches in which responses are scored before an update, and the way back of their scores.

    Where they go by tokens, ranks exchange responses for equal work, but those that share rows. Every rank calls it.
    """
    budget = cfgs.train_cfgs.max_length_per_batch
    if budget is not None:
        return exchanged_and_filled(examples, budget, size, cost if exchanges(cfgs) else None)
    number = micro_batches_of(cfgs, algorithm)
    return split(examples, cfgs.train_cfgs.per_device_train_batch_size, number), Exchange(list(examples))


def exchanged_and_filled(
    examples: Sequence[Example], budget: int, size: Size, cost: CostOf | None
) -> tuple[list[list[Example]], Exchange]:
    """Micro-batches of at most `budget` tokens, as many on every rank, after an exchange by `cost`; None makes none."""
    exchange = Exchange(list(examples)) if cost is None else exchanged(examples, cost)
    return _equally_filled([exchange.examples], budget, size)[0], exchange


def exchanges(cfgs: RunCfgs) -> bool:
    """Whether ranks exchange responses: where micro-batches go by tokens, and ranks have rows of their own."""
    train = cfgs.train_cfgs
    return train.max_length_per_batch is not None and world_size() > 1 and train.sequence_parallel_size == 1


@dataclass(frozen=True)
class Exchange:
    """What a rank computes instead of its own responses, and the way back of what it finds.

    Attributes:
        examples: with the responses that it computes.
        computed: the number of each of them, among those of all ranks; None where nobody gives anything away.
        own: the numbers of the Examples that it has itself, as they were cut for the exchange.
    """

    examples: list[Example]
    computed: Sequence[int] | None = None
    own: Sequence[int] = ()

    def back(self, found: Sequence[Found]) -> list[Found]:
        """Returns what was found of each of this rank's own responses, given that of each response in `examples`.

        Every rank calls it. What is found travels between processes.
        """
        if self.computed is None:
            return list(found)
        waiting = iter(found)
        mine = {
            number: [next(waiting) for _ in example.responses]
            for number, example in zip(self.computed, self.examples, strict=True)
        }
        own = set(self.own)
        sent = all_gather_object({number: values for number, values in mine.items() if number not in own})
        every = {number: values for values_of in (*sent, mine) for number, values in values_of.items()}
        return [value for number in self.own for value in every[number]]


def exchanged(examples: Sequence[Example], cost: CostOf, *, keep_groups: bool = False) -> Exchange:
    """The responses that this rank computes instead of its own, so that ranks have equal work. Every rank calls it.

    Responses whose prompt is computed once for all of them stay together, with `keep_groups` all that answer a prompt
    do. What leaves a rank goes without what only rewards read.
    """
    own = [unit for example in examples for unit in _units(example, cost, keep_groups)]
    costs = [cost(unit) for unit in own]
    everyones = all_gather_object([(taken.work, taken.towers) for taken in costs])
    owners = [owner for owner, held in enumerate(everyones) for _ in held]
    numbers = [[number for number, owner in enumerate(owners) if owner == held] for held in range(len(everyones))]
    work, towers = zip(*(taken for held in everyones for taken in held), strict=True) if owners else ((), ())
    after = Balancer(work, towers, numbers, len(everyones)).run()
    if after == numbers:
        return Exchange(list(examples))
    goes = {number: rank_ for rank_, held in enumerate(after) for number in held}
    mine = dict(zip(numbers[rank()], own, strict=True))
    leaving = {number: _bare(unit) for number, unit in mine.items() if goes[number] != rank()}
    arrived = {number: unit for sent in all_gather_object(leaving) for number, unit in sent.items()}
    computed = after[rank()]
    held = [mine[number] if number in mine else arrived[number] for number in computed]
    return Exchange(held, computed, numbers[rank()])


def _units(example: Example, cost: CostOf, keep_groups: bool) -> list[Example]:
    apart = [replace(example, responses=[response]) for response in example.responses]
    if keep_groups or len(apart) < 2:
        return [example] if apart else []
    return [example] if cost(example).size < sum(cost(one).size for one in apart) else apart


def _bare(example: Example) -> Example:
    return replace(example, conversation=None)


def split_step(examples: Sequence[Example], cfgs: RunCfgs, size: Size) -> list[list[Example]]:
    """The micro-batches of the responses of one optimizer step. Every rank calls it."""
    train = cfgs.train_cfgs
    if train.max_length_per_batch is None:
        return split(examples, train.per_device_train_batch_size, train.gradient_accumulation_steps)
    return _equally_filled([examples], train.max_length_per_batch, size)[0]


def split(examples: Sequence[Example], size: int, number: int) -> list[list[Example]]:
    """Splits Examples into `number` micro-batches of at most `size` responses; the last ones may be empty.

    The responses to a prompt stay together as far as they fit, so that layouts which share prompts can.
    """
    made: list[list[Example]] = [[]]
    capacity = size
    for example in examples:
        waiting = list(example.responses)
        while waiting:
            if not capacity:
                made.append([])
                capacity = size
            made[-1].append(replace(example, responses=waiting[:capacity]))
            waiting, capacity = waiting[capacity:], max(capacity - len(waiting), 0)
    return made + [[] for _ in range(number - len(made))]


def filled(examples: Sequence[Example], budget: int, size: Size, *, keep_groups: bool = False) -> list[list[Example]]:
    """Splits Examples into micro-batches of at most `budget` tokens, in their order.

    A response that takes more with its prompt makes a micro-batch of its own; with `keep_groups`, all responses to
    a prompt do.
    """
    made: list[list[Example]] = [[]]
    for example in examples:
        for responses in [example.responses] if keep_groups else [[response] for response in example.responses]:
            grown = _grown(made[-1], example, responses)
            if made[-1] and size(grown) > budget:
                made.append([])
                grown = _grown([], example, responses)
            made[-1] = grown
    return made


def _grown(examples: list[Example], example: Example, responses: Sequence[Piece]) -> list[Example]:
    """A micro-batch with more responses to the prompt of `example`."""
    if examples and examples[-1].prompt is example.prompt:
        return [*examples[:-1], replace(example, responses=[*examples[-1].responses, *responses])]
    return [*examples, replace(example, responses=list(responses))] if responses else examples


def _equally_filled(
    steps: Sequence[Sequence[Example]], budget: int, size: Size, *, keep_groups: bool = False
) -> list[list[list[Example]]]:
    """Splits the Examples of each step as `filled` does, into as many micro-batches on every rank."""
    made = [filled(step, budget, size, keep_groups=keep_groups) for step in steps]
    most = [max(counts) for counts in zip(*all_gather_object([len(own) for own in made]), strict=True)]
    return [own + [[]] * (count - len(own)) for own, count in zip(made, most, strict=True)]
