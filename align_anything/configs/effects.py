"""Which settings have an effect: what each depends on is declared beside it, in `takes_effect` of its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

OFF = (None, False, '', [], {})
"""Values that ask for nothing."""


@dataclass(frozen=True)
class Facts:
    """What decides whether a setting has an effect.

    Attributes:
        cfgs: all settings of the run, by group.
        reads: media kinds that the pair reads; None where it may read any.
        writes: media kinds that the pair writes; None where it may write any.
    """

    cfgs: BaseModel
    reads: Set[str] | None = None
    writes: Set[str] | None = None

    @property
    def algorithm(self) -> Any:
        """The algorithm: `train_cfgs` hold its fields and derive from its class."""
        return self.cfgs.train_cfgs

    def value(self, path: str) -> Any:
        """The value of the setting `group.key`."""
        group, key = path.split('.')
        return getattr(getattr(self.cfgs, group), key)

    def is_on_by_default(self, path: str) -> bool:
        """Whether the setting `group.key` is a truth value that is True unless it is given."""
        group, key = path.split('.')
        return type(getattr(self.cfgs, group)).model_fields[key].default is True


@dataclass(frozen=True)
class Effect:
    """What a setting needs to have an effect.

    Attributes:
        holds: whether it has one in such a run.
        why: what is said of the setting where it has none.
        by: the settings that decide it; none where the pair or the algorithm does.
        off: values that ask for nothing, and so need nothing.
        spares: settings that it leaves alone where it stands for several.
    """

    holds: Callable[[Facts], bool]
    why: str
    by: tuple[str, ...] = ()
    off: tuple[Any, ...] = OFF
    spares: Set[str] = frozenset()

    def lacking(self, facts: Facts, path: str) -> bool:
        """Whether the setting `path` asks for something that cannot be."""
        value = facts.value(path)
        # What is on by default, switched off, asks for something.
        asks = not is_one_of(value, self.off) or (value is False and facts.is_on_by_default(path))
        return path not in self.spares and asks and not self.holds(facts)


Effects = Mapping[str, Effect | tuple[Effect, ...]]
"""Conditions by setting: `key` of the class that holds them, `group.key`, `*` for the group, `*.*` for the run.

A derived class says anew what it says differently; an empty tuple takes the conditions of one setting away.
"""


def needs(path: str, *values: Any, off: tuple[Any, ...] = OFF) -> Effect:
    """The condition that another setting is one of `values`, or without those that it asks for something."""
    wanted = ' or '.join(f'{path.split(".")[1]}: {value}' for value in values) or path

    def holds(facts: Facts) -> bool:
        return is_one_of(facts.value(path), values) if values else bool(facts.value(path))

    why = f'it means nothing without {wanted}; give that too, or leave it out.'
    return Effect(holds, why, by=(path,), off=off, spares=frozenset({path}))


def excludes(path: str, *values: Any, why: str = '', off: tuple[Any, ...] = OFF) -> Effect:
    """The condition that another setting is none of `values`, or without those that it asks for nothing."""
    key = path.split('.')[1]
    unwanted = ' or '.join(f'{key}: {value}' for value in values) or key

    def holds(facts: Facts) -> bool:
        return not (is_one_of(facts.value(path), values) if values else bool(facts.value(path)))

    return Effect(holds, why or f'it means nothing with {unwanted}; leave one of them out.', by=(path,), off=off)


def writing(*kinds: str, off: tuple[Any, ...] = OFF) -> Effect:
    """The condition that the pair writes media of one of these kinds."""
    return Effect(
        lambda facts: facts.writes is None or not facts.writes.isdisjoint(kinds),
        'it means nothing on a modality pair that writes text alone; leave it out.',
        off=off,
    )


def with_media(*kinds: str) -> Effect:
    """The condition that the pair reads or writes media, of one of these kinds where some are given."""

    def holds(facts: Facts) -> bool:
        if facts.reads is None or facts.writes is None:
            return True
        held = facts.reads | facts.writes
        return not held.isdisjoint(kinds) if kinds else bool(held)

    return Effect(holds, f'it means nothing on a modality pair without {" or ".join(kinds) or "media"}; leave it out.')


def never(why: str, spares: Set[str] = frozenset()) -> Effect:
    """The condition of what the runs of an algorithm never read."""
    return Effect(lambda facts: False, why, spares=spares)


def is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether `value` is among `values`; unlike `in`, it tells 0 from False."""
    return any(type(value) is type(other) and value == other for other in values)


NO_WARM_UP = "the schedule 'constant' has no warm-up; choose constant_with_warmup, or leave it out."
NO_DEEPSPEED_FILE = 'FSDP2 reads no DeepSpeed file; leave it out, or choose engine: deepspeed.'
FREEZING = tuple(
    f'train_cfgs.freeze_{name}' for name in ('vision_tower', 'audio_tower', 'mm_proj', 'generation', 'language_model')
)


def evaluating(off: tuple[Any, ...] = OFF) -> Effect:
    """The condition that there are evaluation data, of their own or of the training data."""
    own = needs('data_cfgs.eval_datasets', off=off)
    return replace(own, by=(*own.by, 'data_cfgs.val_datasets'))


EVALUATES = evaluating()
SUPERVISED = Effect(
    lambda facts: facts.algorithm.task == 'supervised',
    'it means nothing but in supervised fine-tuning; leave it out.',
    off=(0.0,),
)


def effects_of(groups: Mapping[str, type[BaseModel]]) -> dict[str, tuple[Effect, ...]]:
    """The conditions of every setting of a run, by `group.key`, given its groups."""
    named: dict[str, Effect | tuple[Effect, ...]] = {}
    for group, kind in groups.items():
        for base in reversed(kind.__mro__):
            for name, found in vars(base).get('takes_effect', {}).items():
                named[name if '.' in name else f'{group}.{name}'] = found
    for_all = {name.removesuffix('*').removeprefix('*.'): found for name, found in named.items() if name[-1] == '*'}
    paths = [f'{group}.{key}' for group, kind in groups.items() for key in kind.model_fields]
    return {
        path: tuple(
            effect
            for found in (*(own for prefix, own in for_all.items() if path.startswith(prefix)), named.get(path, ()))
            for effect in ((found,) if isinstance(found, Effect) else found)
        )
        for path in paths
    }


def without_effect(facts: Facts) -> Iterator[tuple[str, Effect]]:
    """Yields each setting that has no effect though it asks for something, with the condition that it lacks."""
    groups = {name: type(getattr(facts.cfgs, name)) for name in type(facts.cfgs).model_fields}
    for path, effects in effects_of(groups).items():
        lacking = next((effect for effect in effects if effect.lacking(facts, path)), None)
        if lacking is not None:
            yield path, lacking


EPISODES = Effect(
    lambda facts: facts.algorithm.task == 'supervised' and (facts.writes is None or 'action' in facts.writes),
    'it means nothing but in supervised fine-tuning on recorded actions; leave it out.',
    off=(None, False, 0.0, 'random'),
)
