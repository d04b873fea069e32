"""The floating point operations of models that act, as PyTorch meets them in the first call of a kind."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from align_anything.core.counting import Counting
from align_anything.core.flops import Flops
from align_anything.core.types import Batch
from align_anything.models.adapter import bare_model
from align_anything.models.trainable import count
from align_anything.policies.acting.collator import ActingInputs

VISION, TEXT, FUSION, DECODER, ACTOR = 'vision_tower', 'text_encoder', 'fusion', 'language_model', 'head'


class Size(NamedTuple):
    """What goes through a part: positions, and pairs of them that see each other."""

    positions: float
    pairs: float


class Each(NamedTuple):
    """What a part takes: matrix products and convolutions of a position, and attention of a pair."""

    products: float
    attention: float


class Parts:
    """What each part of a model takes, counted once for each kind of call."""

    def __init__(self) -> None:
        self._known: dict[Hashable, dict[str, Each]] = {}

    @contextmanager
    def counted(
        self, kind: Hashable, sizes: Mapping[str, Size], inner: Mapping[str, Sequence[nn.Module]], rest: str
    ) -> Iterator[None]:
        """Counts what is computed in here, if no call was of this kind: that of `inner` modules apart, else `rest`."""
        if kind in self._known:
            yield
            return
        found = {name: [0.0, 0.0] for name in inner}
        with Counting() as counting, ExitStack() as hooks:
            for name, module in ((name, module) for name, own in inner.items() for module in own):
                before, behind = _marks(counting, found[name])
                hooks.callback(module.register_forward_pre_hook(before).remove)
                hooks.callback(module.register_forward_hook(behind).remove)
            yield
        mine = [sum(own[at] for own in found.values()) for at in range(2)]
        found[rest] = [counting.products - mine[0], counting.attention - mine[1]]
        self._known[kind] = {
            name: Each(own[0] / sizes[name].positions, own[1] / sizes[name].pairs) for name, own in found.items()
        }

    def of(self, kind: Hashable, sizes: Mapping[str, Size], shares: Mapping[str, float]) -> dict[str, Flops]:
        """Returns the operations for such sizes; none where no call was of this kind.

        `shares` are those of the weights of each part that train, in the order in which data go through them: where
        nothing trains in a part or before it, it goes forward alone.
        """
        known, flows, found = self._known.get(kind, {}), False, {}
        for name, share in shares.items():
            flows = flows or share > 0
            if name not in known:
                continue
            products = known[name].products * sizes[name].positions
            attention = known[name].attention * sizes[name].pairs
            backward = products * (1 + share) + 2 * attention if flows else 0.0
            found[name] = Flops(products + attention, backward)
        return found


def _marks(counting: Counting, found: list[float]) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks of a module, between which operations are its own."""
    begun: list[tuple[float, float]] = []

    def before(*_: Any) -> None:
        begun.append((counting.products, counting.attention))

    def behind(*_: Any) -> None:
        products, attention = begun.pop()
        found[0] += counting.products - products
        found[1] += counting.attention - attention

    return before, behind


def trained_share(modules: Sequence[nn.Module], without: Sequence[nn.Module] = ()) -> float:
    """Returns the share of the weights in modules, without those of others, that train."""
    left_out = {id(parameter) for module in without for parameter in module.parameters()}
    own = [item for module in modules for item in module.parameters() if id(item) not in left_out]
    every = sum(count(parameter) for parameter in own)
    return sum(count(parameter) for parameter in own if parameter.requires_grad) / every if every else 0.0


# Models with a decoder over time


def inner_of(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Returns the modules of the parts of a model that are counted apart, the fusion being all else."""
    bare = bare_model(model)
    known = dict(bare.visual_encoder.named_children())
    # What is done once for a picture, once for a goal, and for each step of a row, padding too.
    names = {VISION: ['image_encoder'], TEXT: ['text_encoder', 'text_adapter', 'film']}
    found = {part: [known[name] for name in own if name in known] for part, own in names.items()}
    return {**found, DECODER: [bare.last_actions_embed, bare.decoder]}


def kind_of(inputs: ActingInputs) -> Hashable:
    """Returns what the operations of a step hang on: the length of the goals."""
    return inputs.steps.goals.shape[1]


def sizes_of(inputs: ActingInputs, padded: bool) -> dict[str, Size]:
    """Returns what goes through each part, with padding or without. What is frozen is padded in any case."""
    frames, goals = inputs.steps.frames, inputs.steps.goals
    pictures, steps = float(frames.shape[0] * frames.shape[1]), float(len(frames))
    rows, longest = inputs.step_of.shape
    lengths: Tensor = torch.full((rows,), longest) if padded else (inputs.step_of >= 0).sum(1).cpu()
    seen = lengths.double() * (longest if padded else (lengths + 1) / 2)
    return {
        VISION: Size(pictures, pictures),
        TEXT: Size(len(goals), len(goals)),
        FUSION: Size(steps, steps),
        DECODER: Size(float(lengths.sum()), float(seen.sum())),
    }


def flops_of(batch: Batch, model: nn.Module, known: Parts, acts: bool) -> dict[str, Flops]:
    """Returns the operations of an update on a batch of episodes; those of other rows go forward alone.

    With `acts` those of the actor too, on each unit.
    """
    if not batch.stats.get('examples'):
        return {}
    bare, inner = bare_model(model), inner_of(model)
    shares = {
        VISION: trained_share(inner[VISION]),
        TEXT: trained_share(inner[TEXT]),
        FUSION: trained_share([bare.visual_encoder], [*inner[VISION], *inner[TEXT]]),
        DECODER: trained_share(inner[DECODER]),
    }
    found = known.of(kind_of(batch.inputs), sizes_of(batch.inputs, padded=False), shares)
    if found and acts:
        weights = [own for name, own in bare.actor.named_parameters() if name.endswith('weight')]
        forward = 2.0 * len(batch.weights) * sum(map(count, weights))
        trains = any(parameter.requires_grad for parameter in weights)
        found[ACTOR] = Flops(forward, forward * (1 + trains) if trains or any(shares.values()) else 0.0)
    if batch.unmatched is None:
        return found
    others = flops_of(batch.unmatched, model, known, acts)
    return {name: flops + others.get(name, Flops()).forward_only() for name, flops in found.items()}
