"""Actions as numbers or names, and the space that they are from: what a checkpoint must know of them to act."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.registry import nearest

Normalization = Literal['quantiles', 'min_max', 'mean_std', 'identity']
Binning = Literal['uniform', 'openvla']
Written = Literal['', 'reserved', 'tail', 'words']
Decoding = Literal['autoregressive', 'parallel']
LISTS = 'names', 'dimensions', 'cameras', 'first_ids', 'states'
TABLES = 'statistics', 'state_statistics'
STATE, DATASET = 'state', 'dataset'
"""Keys of a user turn: the state of the body, numbers by name, and whose statistics hold for it."""
STATE_BINS = 256
"""How many values a number of a state is told as, where it is told in words."""
BESIDE = 1e-6
"""How far beyond -1 and 1 a number may be that is only rounded."""


FLIPS = ('horizontal', 'vertical')
TURNED = ('rotate', 'flip', 'size')
"""What is done to pictures, in this order: it changes where things are in them."""


def problems_of_pictures(options: Any) -> list[str]:
    """Returns what of the options nothing can be done to a picture by, in words."""
    if not isinstance(options, Mapping):
        return [f'pictures is {options!r}, and should name what is done to them: {", ".join(TURNED)}']
    found = [
        f"pictures has no '{name}'.{nearest(str(name), list(TURNED))} It has: {', '.join(TURNED)}"
        for name in options
        if name not in TURNED
    ]
    rotate, flip, size = (options.get(name) for name in TURNED)
    if rotate and (isinstance(rotate, bool) or rotate not in range(-270, 361, 90)):
        found.append(f'rotate of pictures is {rotate!r}: they are turned by 90, 180 or 270 degrees')
    if flip and flip not in FLIPS:
        found.append(f'flip of pictures is {flip!r}.{nearest(str(flip), list(FLIPS))} It is one of {", ".join(FLIPS)}')
    if size and not (isinstance(size, (list, tuple)) and len(size) == 2 and all(map(_is_side, size))):
        found.append(f'size of pictures is {size!r}, and should be a height and a width in pixels')
    return found


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True, eq=False)
class Actions:
    """What is done in one turn: one step, or a chunk of several.

    Attributes:
        values: of each step and dimension, as the environment takes them, `(steps, dimensions)` float64; None for
            named actions.
        names: of each step, for spaces of named actions.
        dataset: whose statistics hold for the values; empty for the one that a space goes by.
    """

    values: Tensor | None = None
    names: tuple[str, ...] = ()
    dataset: str = ''

    def __len__(self) -> int:
        return len(self.names) if self.values is None else len(self.values)

    @property
    def plain(self) -> list[Any]:
        """As JSON holds them: a name for each step, or its numbers."""
        return list(self.names) if self.values is None else self.values.tolist()

    @property
    def written(self) -> str:
        """As a person reads them."""
        steps = [f'[{", ".join(f"{value:.4g}" for value in step)}]' for step in ([] if self.names else self.plain)]
        return ', '.join(self.names or steps)

    def first(self, steps: int) -> Actions:
        """Returns the first steps of it, all where it has no more."""
        values = None if self.values is None else self.values[:steps]
        return Actions(values, self.names[:steps], self.dataset)


@dataclass(frozen=True)
class Statistics:
    """Of the actions of one dataset, each with a number per dimension.

    Attributes:
        low, high: what -1 and 1 stand for: their 1st and 99th percentiles, or least and greatest values.
        mean, std: of mean-std normalisation.
        mask: which dimensions are normalised; others, such as a gripper that is open or closed, stay as they are.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mask: tuple[bool, ...]


@dataclass(frozen=True)
class ActionSpace:
    """What the actions of a policy are, saved in its checkpoint as `action_space.json`. Picklable.

    Attributes:
        names: the named actions, one of which is chosen at each step; empty where actions are numbers.
        dimensions: names of the numbers of an action; empty where it has a name.
        bins: how many values a token can stand for, where actions are tokens.
        binning: how numbers become one of them. `uniform` cuts -1 to 1 into equal bins. `openvla` has their edges at
            -1 and 1 as the first and last one, so that the last bin holds the 1 alone, is read as the one before it,
            and counts down from the end of the ids.
        normalization: how statistics bring numbers to [-1, 1], or to unit variance.
        statistics: of each dataset that was trained on, by name.
        dataset: the one whose statistics hold where nothing else is said; see `of`.
        chunk: steps that the policy says in one turn.
        executed: how many of them are done before it is asked again.
        cameras: names of the pictures of a step, in the order in which the policy sees them.
        pictures: what was done to each picture before the policy saw it, such as `{'rotate': 180}`; `rotate`, `flip`
            and `size`, as decoding has them (`datasets.media.image`). None where nothing says it, as in published
            checkpoints.
        tokens: how a token model writes them: by `reserved` tokens, by those at the `tail` of its vocabulary, or by
            their names in `words`; empty where actions are no tokens.
        first_ids: the id of the first bin of each dimension, or of the first named action.
        states: names of the states of a body that a token policy reads in each step, in order; none are read else.
        state_statistics: of the numbers of all these states together, by the same names of datasets.
        decoding: how a token model samples the tokens of a turn: one after the other, or `parallel`, all at once.
    """

    names: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    bins: int = 256
    binning: Binning = 'uniform'
    normalization: Normalization = 'quantiles'
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    dataset: str = ''
    chunk: int = 1
    executed: int = 1
    cameras: tuple[str, ...] = ()
    pictures: Mapping[str, Any] | None = field(default_factory=dict)
    tokens: Written = ''
    first_ids: tuple[int, ...] = ()
    states: tuple[str, ...] = ()
    state_statistics: Mapping[str, Statistics] = field(default_factory=dict)
    decoding: Decoding = 'autoregressive'

    @property
    def books(self) -> tuple[int, ...]:
        """How many codes each number of a step may be, or its name: the code books of a token model."""
        return (len(self.names),) if self.names else (self.bins,) * len(self.dimensions)

    def unfit(self, there: ActionSpace) -> str:
        """Returns why nothing of it can be done where `there` is what can be done; empty where something can."""
        if self.dimensions and there.dimensions and len(self.dimensions) != len(there.dimensions):
            return (
                f'an action there has {len(there.dimensions)} numbers ({", ".join(there.dimensions)}), and one of the '
                f'policy {len(self.dimensions)} ({", ".join(self.dimensions)})'
            )
        beyond = self.beyond(there)
        if self.names and len(beyond) == len(self.names):
            return f'it knows none of the actions of the policy ({", ".join(beyond)}), only {", ".join(there.names)}'
        if self.names and there.dimensions:
            return f'an action is {len(there.dimensions)} numbers there, and the policy says names'
        if self.dimensions and there.names:
            return f'actions are names there ({", ".join(there.names)}), and the policy says numbers'
        return ''

    def beyond(self, there: ActionSpace) -> list[str]:
        """Returns the named actions that are none of those `there`, if those have names."""
        known = {name.lower() for name in there.names}
        return [name for name in self.names if known and name.lower() not in known]

    # Named actions

    def indices(self, actions: Actions) -> Tensor:
        """Returns the number of each named action, `(steps,)` int64. Raises SampleError for an unknown one."""
        unknown = [name for name in actions.names if name not in self.names]
        if unknown or actions.values is not None:
            what = f"'{unknown[0]}'" if unknown else 'numbers'
            raise SampleError(f'the action is {what}, and should be one of {", ".join(self.names)}')
        return torch.tensor([self.names.index(name) for name in actions.names], dtype=torch.long)

    def named(self, indices: Sequence[int]) -> Actions:
        """Returns the actions of these numbers."""
        return Actions(names=tuple(self.names[index] for index in indices))

    # Numbers

    def of(self, dataset: str = '') -> Statistics:
        """Returns the statistics of a dataset, or of the one that holds where nothing else is said.

        Raises SampleError, with the names of those there are, where there are none of it, or more than one to choose.
        """
        return self._of(self.statistics, dataset)

    def _of(self, table: Mapping[str, Statistics], dataset: str) -> Statistics:
        name = dataset or self.dataset or (next(iter(table)) if len(table) == 1 else '')
        if name in table:
            return table[name]
        there = f'There are: {", ".join(sorted(table)) or "none"}.'
        if not name:
            raise SampleError(f'nothing says which statistics un-normalise the actions: name a dataset. {there}')
        hint = nearest(name, sorted(table))
        raise SampleError(f"the action space has no statistics of a dataset '{name}'.{hint} {there}")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of those whose statistics it has, in order."""
        return tuple(sorted({*self.statistics, *self.state_statistics}))

    def normalized(self, values: Tensor, dataset: str = '') -> Tensor:
        """Returns numbers of an environment as the policy has them, `(steps, dimensions)` float64.

        Dimensions that never varied are 0. Nothing is clipped: what lies beyond the percentiles lies beyond -1 and 1.
        Raises SampleError for values of another number of dimensions, and as `of` does.
        """
        values = self._checked(values)
        if self.normalization == 'identity':
            return values
        scale, shift, mask = self._affine(self.of(dataset))
        moved = torch.where(scale > 0, (values - shift) / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
        return torch.where(mask, moved, values)

    def restored(self, values: Tensor, dataset: str = '') -> Tensor:
        """Returns numbers of the policy as the environment takes them: what `normalized` did is undone."""
        values = self._checked(values)
        if self.normalization == 'identity':
            return values
        scale, shift, mask = self._affine(self.of(dataset))
        return torch.where(mask, values * scale + shift, values)

    def _affine(self, statistics: Statistics) -> tuple[Tensor, Tensor, Tensor]:
        """What a normalised number is multiplied by, what is added then, and where."""
        low, high, mean, std = (
            torch.tensor(getattr(statistics, name), dtype=torch.float64) for name in ('low', 'high', 'mean', 'std')
        )
        mask = torch.tensor(statistics.mask)
        return (std, mean, mask) if self.normalization == 'mean_std' else ((high - low) / 2, (high + low) / 2, mask)

    def _checked(self, values: Tensor) -> Tensor:
        if values.ndim != 2 or values.shape[1] != len(self.dimensions):
            raise SampleError(
                f'an action has {values.shape[-1] if values.ndim else 1} numbers, and should have '
                f'{len(self.dimensions)}: {", ".join(self.dimensions)}'
            )
        if not bool(torch.isfinite(values).all()):
            raise SampleError('an action has numbers that are not finite')
        return values.double()

    # States

    def state_bins(self, state: Mapping[str, Sequence[float]], dataset: str = '') -> list[int]:
        """Returns the bin of each number of a state, 0 to 255: the 1st percentile is the first one, the 99th the last.

        Numbers beyond are told as these. Raises SampleError for a state that is not what the space names, and as `of`
        does.
        """
        missing = [name for name in self.states if name not in state]
        if missing:
            raise SampleError(
                f"a step tells no state '{missing[0]}', which the policy reads.{nearest(missing[0], list(state))} "
                f'It tells: {", ".join(state) or "none"}.'
            )
        numbers = [float(value) for name in self.states for value in state[name]]
        own = self._of(self.state_statistics, dataset)
        if len(numbers) != len(own.low):
            raise SampleError(
                f'the state of a step ({", ".join(self.states)}) has {len(numbers)} numbers, and its statistics '
                f'{len(own.low)}: it is that of another body'
            )
        shares = [
            (value - low) / (high - low) if high > low else 0.5
            for value, low, high in zip(numbers, own.low, own.high, strict=True)
        ]
        return [min(STATE_BINS - 1, math.floor(min(1.0, max(0.0, share)) * STATE_BINS)) for share in shares]

    # Codes

    def encode(self, actions: Actions) -> Tensor:
        """Returns the codes of actions, `(books, steps)` int64: the number of the bin of each dimension, or of a name.

        Normalised numbers are clipped to [-1, 1]. Raises SampleError for actions that are not of this space, and for
        numbers that are not normalised and lie beyond.
        """
        if self.names:
            return self.indices(actions)[None]
        if actions.values is None:
            raise SampleError(f"the action is '{actions.names[0]}', and should be {len(self.dimensions)} numbers")
        values = self.normalized(actions.values, actions.dataset)
        self._require_within(values, actions.dataset)
        values = values.clamp(-1.0, 1.0)
        if self.binning == 'openvla':
            found = torch.bucketize(values, self._edges(), right=True)  # 1 to `bins`, as numpy.digitize counts
            return (self.bins - found).t()
        return ((values + 1.0) / 2.0 * self.bins).floor().long().clamp(max=self.bins - 1).t()

    def decode(self, codes: Tensor, dataset: str = '') -> Actions:
        """Returns the actions of codes `(books, steps)`, numbers as the environment takes them: the middle of a bin."""
        if self.names:
            return self.named(codes[0].tolist())
        if self.binning == 'openvla':
            edges = self._edges()
            middles = (edges[:-1] + edges[1:]) / 2.0
            values = middles[(self.bins - codes - 1).clamp(0, self.bins - 2)]
        else:
            values = (codes.double() + 0.5) * 2.0 / self.bins - 1.0
        return Actions(self.restored(values.t(), dataset), dataset=dataset)

    def _edges(self) -> Tensor:
        # As numpy rounds them, and torch.linspace does not: values on an edge fall where those who trained had them.
        edges = torch.arange(self.bins, dtype=torch.float64) * (2.0 / (self.bins - 1)) - 1.0
        edges[-1] = 1.0
        return edges

    def _require_within(self, values: Tensor, dataset: str) -> None:
        """Raises SampleError for numbers beyond [-1, 1] that no statistics bring there: bins would clip them."""
        mask = (False,) * len(self.dimensions) if self.normalization == 'identity' else self.of(dataset).mask
        for number, normalised in enumerate(mask):
            farthest = float(values[:, number].abs().max()) if len(values) else 0.0
            if not normalised and farthest > 1.0 + BESIDE:
                raise SampleError(
                    f"'{self.dimensions[number]}' of an action is {farthest:g} from 0, and is not normalised: tokens "
                    'stand for -1 to 1. Normalise it, or bring it there in the data'
                )

    # As a file

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str = 'action_space.json') -> ActionSpace:
        """Returns what `to_json` wrote. Raises ModelError, with all that is wrong and `source`, for anything else."""
        known = list(cls.__dataclass_fields__)
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ModelError(f"{source} has no '{unknown[0]}'.{nearest(unknown[0], known)} It has: {', '.join(known)}.")
        tables = [key for key in ('statistics', 'pictures') if not isinstance(values.get(key) or {}, Mapping)]
        if tables:
            raise ModelError(f'{source}: {tables[0]} is {values[tables[0]]!r}, and should be an object.')
        try:
            tables = {
                table: {
                    str(name): Statistics(**{key: tuple(value) for key, value in own.items()})
                    for name, own in values.get(table, {}).items()
                }
                for table in TABLES
            }
            texts = [key for key in LISTS if isinstance(values.get(key), str)]
            if texts:
                raise TypeError(f"{texts[0]} is the text '{values[texts[0]]}', and should be a list")
            lists = {key: tuple(values[key]) for key in LISTS if key in values}
            found = cls(**{**values, **lists, **tables})
            problems = found.problems()
        except (TypeError, AttributeError) as error:
            raise ModelError(f'{source} is no action space: {error}') from error
        if problems:
            raise ModelError(f'{source}: ' + '\n'.join(problems))
        return found

    def problems(self) -> list[str]:
        """Returns all that makes it no space to act in, in words."""
        found = self._mistyped()
        if found:
            return found
        if bool(self.names) == bool(self.dimensions):
            found.append('an action has either names, one of which is chosen, or dimensions that are numbers')
        for what in ('names', 'dimensions', 'cameras', 'states'):
            given = getattr(self, what)
            twice = sorted({name for name in given if given.count(name) > 1})
            if twice:
                found.append(f"{what} has '{twice[0]}' twice")
        for what, chosen, options in (
            ('normalization', self.normalization, get_args(Normalization)),
            ('binning', self.binning, get_args(Binning)),
            ('tokens', self.tokens, get_args(Written)),
            ('decoding', self.decoding, get_args(Decoding)),
        ):
            if chosen not in options:
                there = ', '.join(option for option in options if option)
                found.append(f"{what} '{chosen}' is none of {there}{nearest(str(chosen), list(options))}")
        found += problems_of_pictures(self.pictures or {})
        if not 1 <= self.executed <= self.chunk:
            found.append(f'{self.executed} steps are done of a chunk of {self.chunk}: it should be from 1 to that')
        if self.bins < 2:
            found.append(f'{self.bins} bins tell nothing apart: it takes two at least')
        if self.tokens == 'words' and not self.names:
            found.append('numbers are not written as words: write them as reserved tokens, or as the tail')
        if self.decoding == 'parallel' and self.tokens not in ('reserved', 'tail'):
            found.append('decoding is parallel, but only reserved tokens, or those of the tail, are sampled at once')
        if self.tokens in ('reserved', 'tail') and not self.names and self.normalization == 'mean_std':
            found.append('bins stand for -1 to 1, and mean_std has no bounds: normalise by quantiles or min_max')
        if self.first_ids and len(self.first_ids) != len(self.books):
            found.append(f'{len(self.first_ids)} first_ids for {len(self.books)} dimensions')
        for name, own in self.statistics.items():
            found += [f'statistics of {name}: {problem}' for problem in _problems_of(own, self.dimensions)]
        for name, own in self.state_statistics.items():
            numbers = [f'number {number} of a state' for number in range(len(own.low))]
            found += [f'state_statistics of {name}: {problem}' for problem in _problems_of(own, numbers)]
        if self.dataset and self.datasets and self.dataset not in self.datasets:
            found.append(f"there are no statistics of '{self.dataset}', only of {', '.join(self.datasets)}")
        return found

    def _mistyped(self) -> list[str]:
        """What is no text or whole number where it should be: a file may have been written by hand."""
        found = [
            f'{what} has {name!r}, and should have texts that are not empty'
            for what in ('names', 'dimensions', 'cameras', 'states')
            for name in getattr(self, what)
            if not isinstance(name, str) or not name
        ]
        counts = [(what, getattr(self, what)) for what in ('bins', 'chunk', 'executed')]
        counts += [('first_ids', first) for first in self.first_ids]
        for what, number in counts:
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                found.append(f'{what} has {number!r}, and should have whole numbers from 0 on')
        return found


def _problems_of(own: Statistics, dimensions: Sequence[str]) -> list[str]:
    size = len(dimensions)
    for name, numbers in asdict(own).items():
        if len(numbers) != size:
            return [f'{name} has {len(numbers)} numbers for {size} dimensions']
        for number in numbers:
            if name == 'mask' and not isinstance(number, bool):
                return [f'mask has {number!r}, and should have true and false']
            if name != 'mask' and not (isinstance(number, Real) and math.isfinite(number)):
                return [f'{name} has {number!r}, and should have finite numbers']
    crossed = [name for name, low, high in zip(dimensions, own.low, own.high, strict=True) if low > high]
    below = [name for name, std in zip(dimensions, own.std, strict=True) if std < 0]
    return [
        *(f"low of '{name}' is above its high" for name in crossed),
        *(f"std of '{name}' is below 0" for name in below),
    ]
