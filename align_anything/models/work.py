"""How many floating point operations a token model takes: from its configuration and the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from align_anything.core.flops import Flops
from align_anything.core.parameters import full_shape
from align_anything.core.types import Example
from align_anything.models.adapter import bare_model
from align_anything.models.family import FamilySpec
from align_anything.models.score import SCORE_HEAD
from align_anything.models.tiling import has_tiles
from align_anything.models.trainable import component_of, count, plain_name

FRAMES_PER_POSITION = 2
"""Feature frames of an audio clip that make one position of its encoder, as in Whisper's."""
TOWERS = ('vision_tower', 'audio_tower')
# The matrix behind attention: what goes into it is what the heads have found together.
BEHIND_ATTENTION = re.compile(
    r'(?<!linear_)att(?:entio)?n\.(?:\w+\.)*'
    r'(?:o_proj|out_proj|proj|c_proj|dense|wo|projection(?:_layer)?|post)\.(?:linear\.)?weight$'
)
_READS_DATA = re.compile(r'patch_emb|conv1\.weight$')
LAYER = re.compile(r'\.(?:layers|h|blocks|block|layer)\.(\d+)\.')


class Span(NamedTuple):
    """Positions that see each other, and how many before them they see all of."""

    length: int
    prefix: int = 0


@dataclass(frozen=True)
class Stack:
    """A component of a model as the positions that go through it meet it. All operations are those of a forward pass.

    Attributes:
        weights: those of one position in the matrices.
        trained: of these, those in matrices that train.
        inner: of these, those in matrices with something below them; raw data have no gradient.
        attention: those of a pair of positions that see each other, by the window of the layers; None for none.
        causal: whether positions see only those before them.
        backward: whether a gradient flows through.
        recomputes: the share of the forward pass that the backward pass computes again.
        in_mlps: of the weights, those in MLPs.
        tiled: whether MLPs are computed in tiles, each once more for its gradient.
        beside: positions that join those of each span, such as one for its class.
    """

    weights: float = 0.0
    trained: float = 0.0
    inner: float = 0.0
    attention: Mapping[int | None, float] = field(default_factory=dict)
    causal: bool = True
    backward: bool = False
    recomputes: float = 0.0
    beside: int = 0
    in_mlps: float = 0.0
    tiled: bool = False

    def flops(self, spans: Sequence[Span], positions: float | None = None) -> Flops:
        """Returns the operations for such spans; `positions` is how many they have, if not the sum of their lengths."""
        spans = [Span(span.length + self.beside, span.prefix) for span in spans]
        positions = sum(span.length for span in spans) if positions is None else positions
        attended = sum(
            each * sum(pairs(span, window, self.causal) for span in spans) for window, each in self.attention.items()
        )
        forward = positions * self.weights + attended
        if not self.backward:
            return Flops(forward)
        # Of a product both factors have a gradient; a matrix has one where it trains.
        backward = positions * (self.inner + self.trained) + 2 * attended
        return Flops(forward, backward, forward * self.recomputes + positions * self.in_mlps * self.tiled)


def pairs(span: Span, window: int | None, causal: bool) -> float:
    """Returns how many pairs of a position and one that it sees there are in a span."""
    length, prefix = span
    keys = prefix + length
    if not causal:
        return float(length * (keys if window is None else min(window, keys)))
    if window is None or window >= keys:
        return length * prefix + length * (length + 1) / 2
    # The first ones still see everything before them.
    growing = max(0, min(length, window - prefix))
    return growing * prefix + growing * (growing + 1) / 2 + (length - growing) * float(window)


@dataclass(frozen=True)
class Sizes:
    """What a token model is given.

    Attributes:
        text: spans of tokens.
        media: tokens among them that stand for media.
        vision, audio: spans of the positions of the towers.
        scored: rows of the output embedding that are multiplied, of all units together.
        coded: units that are codes.
    """

    text: Sequence[Span]
    media: int = 0
    vision: Sequence[Span] = ()
    audio: Sequence[Span] = ()
    scored: float = 0.0
    coded: int = 0


@dataclass(frozen=True)
class Work:
    """The operations of a token model by component. Picklable.

    Attributes:
        stacks: its components.
        head: one row of the output embedding.
    """

    stacks: Mapping[str, Stack]
    head: Stack = field(default_factory=Stack)

    def of(self, sizes: Sizes) -> dict[str, Flops]:
        """Returns the operations for what is given, by component."""
        given: dict[str, tuple[Sequence[Span], float | None]] = {
            'vision_tower': (sizes.vision, None),
            'audio_tower': (sizes.audio, None),
            'mm_proj': ((), sizes.media),
            'generation': ((), sizes.coded),
            'language_model': (sizes.text, None),
        }
        found = {name: stack.flops(*given[name]) for name, stack in self.stacks.items() if name in given}
        return found | {'head': self.head.flops((), sizes.scored)}

    def total(self, sizes: Sizes) -> Flops:
        """Returns the operations for what is given."""
        return sum(self.of(sizes).values(), Flops())


def work_of_model(model: nn.Module, spec: FamilySpec, recomputes: float, adapted: Collection[str] = ()) -> Work:
    """Returns the operations of a model as it trains, adapters applied; weights in shards or few bits count in full.

    `recomputes` is the share of layers that the backward pass computes again, and `adapted` are components that will
    have adapters which are not there yet.

    Not counted are norms, activation functions, what looks weights up, and the state of layers that have one instead
    of attention. A position of media sees what is before it only, also where the family lets media see all of itself.
    """
    plain = bare_model(model)
    output = plain.get_output_embeddings()
    looked_up = {id(item.weight) for item in model.modules() if isinstance(item, nn.Embedding)}
    head_weights = {id(weight) for weight in output.parameters()} if output is not None else set()
    text = spec.config.get_text_config()
    settings = text.to_dict()
    chosen = share_of_experts(settings)
    sums: dict[str, list[float]] = {}
    attention: dict[str, dict[int | None, float]] = {}
    trains = set(adapted)
    beside: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        component = component_of(name, spec.components)
        if parameter.requires_grad:
            trains.add(component)
        base = plain_name(name)
        if 'class_embedding' in base or 'cls_token' in base:
            beside[component] = 1
        if id(parameter) in looked_up | head_weights or component == SCORE_HEAD or not _multiplies(base, parameter):
            continue
        times = chosen if '.experts.' in base else 1.0
        if component == 'audio_tower' and base.endswith('conv1.weight'):
            times = float(FRAMES_PER_POSITION)
        each = 2 * times * count(parameter)
        held = sums.setdefault(component, [0.0, 0.0, 0.0, 0.0])
        held[0] += each
        held[1] += each * parameter.requires_grad
        held[2] += each * (not _READS_DATA.search(base))
        held[3] += each * ('.mlp.' in base)
        if 'lora_' not in name and BEHIND_ATTENTION.search(base):
            layer = LAYER.search(base)
            number = int(layer[1]) if layer else 0
            window = _window(component, number, spec.config.to_dict(), settings)
            own = attention.setdefault(component, {})
            own[window] = own.get(window, 0.0) + 2 * _width(parameter) * (1 + _keys_over_values(component, settings))
    below = {
        'mm_proj': trains & set(TOWERS),
        'language_model': trains & {*TOWERS, 'mm_proj'},
        'generation': trains - {SCORE_HEAD},
    }
    stacks = {
        name: Stack(
            weights,
            trained,
            inner,
            attention.get(name, {}),
            causal=name == 'language_model',
            backward=bool(name in trains or below.get(name)),
            recomputes=recomputes if name in ('language_model', *TOWERS) else 0.0,
            beside=beside.get(name, 0) if name in TOWERS else 0,
            in_mlps=in_mlps,
            tiled=name == 'language_model' and has_tiles(plain),
        )
        for name, (weights, trained, inner, in_mlps) in sums.items()
    }
    return Work(stacks, _head(output, flows=bool(trains - {SCORE_HEAD})))


def _head(output: nn.Module | None, flows: bool) -> Stack:
    """What a row of the output embedding takes of each unit; its products are made again in the backward pass."""
    if output is None:
        return Stack()
    weight = output.weight
    row = 2.0 * count(weight) / full_shape(weight)[0]
    return Stack(row, row * weight.requires_grad, row, backward=flows, recomputes=1.0)


def _multiplies(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix that positions go through."""
    leaf = name.rsplit('.', 1)[-1]
    # Tables of positions and classes are added; those that are modules are embeddings.
    return len(full_shape(parameter)) > 1 and not (leaf != 'weight' and ('pos' in leaf or 'class' in leaf))


def _width(parameter: nn.Parameter) -> int:
    """The numbers that go into a matrix, which 4 bits hold in another shape."""
    state = vars(parameter).get('quant_state')
    return (full_shape(parameter) if state is None else state.shape)[-1]


def _keys_over_values(component: str, settings: Mapping[str, Any]) -> float:
    """The size of a key over that of a value, which multi-head latent attention has apart."""
    if component != 'language_model' or not settings.get('qk_nope_head_dim'):
        return 1.0
    return (settings['qk_nope_head_dim'] + settings['qk_rope_head_dim']) / settings['v_head_dim']


def _window(component: str, layer: int, config: Mapping[str, Any], text: Mapping[str, Any]) -> int | None:
    """How many positions one of this layer sees at most, None for all."""
    if component == 'vision_tower':
        own = config.get('vision_config') or {}
        apart = own.get('window_size') and own.get('fullatt_block_indexes') is not None
        if not apart or layer in own['fullatt_block_indexes']:
            return None
        return (own['window_size'] // own['patch_size']) ** 2
    if component != 'language_model':
        return None
    kinds = text.get('layer_types')
    if kinds:
        kind = kinds[layer] if layer < len(kinds) else 'full_attention'
        sizes = {'sliding_attention': text.get('sliding_window'), 'chunked_attention': text.get('attention_chunk_size')}
        return sizes.get(kind)
    return text.get('sliding_window') if text.get('use_sliding_window', True) else None


class WorkOf:
    """Says how many operations an Example takes in a run: of all components, and of the towers alone. Picklable.

    Built from the configuration alone, no weights are read.
    """

    def __init__(self, spec: FamilySpec, work: Work) -> None:
        self.spec, self.work = spec, work

    def __call__(self, example: Example, shared: bool) -> tuple[float, float]:
        """Counts a prompt once where responses share it, else as often as there are responses."""
        found = self.work.of(sizes_of_example(self.spec, example, shared))
        every = {name: flops.model + flops.again for name, flops in found.items()}
        return sum(every.values()), sum(every.get(name, 0.0) for name in TOWERS)


def sizes_of_example(spec: FamilySpec, example: Example, shared: bool) -> Sizes:
    """Returns what a model is given with an Example."""
    pieces = [piece for response in example.responses for piece in response.sequences]
    before = [len(example.prompt) if piece.prefix_length is None else piece.prefix_length for piece in pieces]
    if shared:
        text = [Span(len(example.prompt)), *(map(Span, map(len, pieces), before))]
    else:
        text = [Span(prefix + len(piece)) for piece, prefix in zip(pieces, before, strict=True)]
    repeated = [example.prompt] * (1 if shared else sum(map(bool, before)))
    parts = [*repeated, *pieces]
    vision, audio = (sum(spans, []) for spans in zip(*(tower_spans(piece.media, spec) for piece in parts), strict=True))
    targets = torch.cat([piece.ids[piece.weights > 0] for piece in (example.prompt, *pieces)])
    return Sizes(text, sum(media_in(piece.ids, spec) for piece in parts), vision, audio, *rows_scored(targets, spec))


def positions_in_towers(spec: FamilySpec, examples: Sequence[Example], shared: bool) -> dict[str, int]:
    """Returns how many positions of Examples go through each tower, whose prompts are shared or not."""
    given = [sizes_of_example(spec, example, shared) for example in examples]
    spans = [span for own in given for span in own.vision], [span for own in given for span in own.audio]
    return {tower: sum(span.length for span in own) for tower, own in zip(TOWERS, spans, strict=True)}


def media_in(ids: Tensor, spec: FamilySpec) -> int:
    """Returns how many ids stand for media."""
    return int(torch.isin(ids, torch.tensor(sorted(spec.media_token_ids), dtype=torch.long)).sum())


def rows_scored(targets: Tensor, spec: FamilySpec) -> tuple[float, int]:
    """Returns the rows of the output embedding that score these ids, and how many of them are codes."""
    vocabulary = spec.config.get_text_config().vocab_size
    if spec.codes is None:
        return float(len(targets) * vocabulary), 0
    numbers = spec.codes.set_of(targets)
    coded = int((numbers != 0).sum())
    if not spec.codes.ranged:
        return float(len(targets) * vocabulary), coded
    sizes = [sum(stop - start for start, stop in spans) for spans in spec.codes.sets(vocabulary)]
    return float(sum(sizes[number] for number in numbers.tolist())), coded


def patch_area(spec: FamilySpec) -> int:
    """Returns the pixels of one patch of the vision tower."""
    config = spec.config.to_dict().get('vision_config') or {}
    size = config.get('patch_size') or 14
    return prod(size) if isinstance(size, (list, tuple)) else size**2


def tower_spans(media: Mapping[str, Tensor], spec: FamilySpec) -> tuple[list[Span], list[Span]]:
    """Returns the spans of positions of the vision and the audio tower for media tensors, in which they see each other.

    What processors cut into patches themselves is `(patches, values)`, with the grid of each medium beside it; other
    pixels are `(…, 3, height, width)`.
    """
    vision: list[Span] = []
    audio: list[Span] = []
    for name, tensor in media.items():
        if name.startswith('pixel_values') and tensor.ndim == 2:
            grid = media.get('video_grid_thw' if 'videos' in name else 'image_grid_thw')
            vision += [Span(tensor.shape[0])] if grid is None else _frames(grid)
        elif name.startswith('pixel_values') and tensor.ndim > 2:
            height, width = tensor.shape[-2:]
            pictures = tensor.numel() // (tensor.shape[-3] * height * width)
            vision += [Span(height * width // patch_area(spec))] * pictures
        elif name.startswith(('input_features', 'input_audio_features')) and 'mask' not in name:
            audio += _clips(tensor, media, spec.config.to_dict().get('audio_config') or {})
    return vision, audio


def _clips(features: Tensor, media: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[Span]:
    """The spans of clips `(clips, bins, frames)`; towers with windows read what a mask leaves, the others all of it."""
    window, mask = config.get('n_window'), media.get('feature_attention_mask')
    if not window:
        return [Span(features.shape[-1] // FRAMES_PER_POSITION)] * features.shape[0]
    frames = [features.shape[-1]] * features.shape[0] if mask is None else mask.sum(-1).tolist()
    positions = [number // FRAMES_PER_POSITION for number in frames]
    return [Span(min(window, number - start)) for number in positions for start in range(0, number, window)]


def _frames(grid: Tensor) -> list[Span]:
    return [Span(height * width) for times, height, width in grid.tolist() for _ in range(times)]


def share_of_experts(config: Mapping[str, Any]) -> float:
    """Returns which part of the experts of a layer a token goes through, 1 where there are none."""
    experts = config.get('num_experts') or config.get('num_local_experts')
    return config['num_experts_per_tok'] / experts if experts else 1.0
