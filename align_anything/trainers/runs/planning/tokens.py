"""Models of tokens, as plans know them: from a configuration, and where prompts have media from a processor too."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from align_anything.algorithms.base import Algorithm
from align_anything.configs.schema import BnbCfgs, LoraCfgs
from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.flops import Flops
from align_anything.core.types import Audio, MediaKind, Video
from align_anything.models import structure
from align_anything.models.activations import activations_of
from align_anything.models.checkpointing import ALL_LAYERS, Checkpointing
from align_anything.models.family import FamilySpec
from align_anything.models.lora import apply_lora
from align_anything.models.quantization import bytes_spared
from align_anything.models.tiling import gated_mlps
from align_anything.models.trainable import enable_gradient_checkpointing
from align_anything.models.work import TOWERS, Sizes, Span, Work, media_in, tower_spans, work_of_model
from align_anything.trainers.runs.planning.subject import HALF, Asked, Settings, Subject

SIDE = 448
"""Pixels of a side of pictures that nothing else is said of."""
SHARING = (2, 4, 8, 16)
"""How many ranks may share a row."""
EVERY = (4, 2)
"""Of how many layers one is computed again, where not all are."""


@dataclass(frozen=True)
class Architecture:
    """What is known of a family from a configuration alone."""

    config: Any
    components: dict[str, list[str]]
    codes: None = None
    media_token_ids: frozenset[int] = frozenset()

    @staticmethod
    def of(config: Any) -> Architecture:
        """Returns what the configuration says. Raises ModelError for one that no class here trains."""
        return Architecture(config, structure.components(config))

    def component_of(self, name: str) -> str:
        """Returns the component that a parameter belongs to."""
        return structure.component_of(self.components, name)


@dataclass(frozen=True)
class Media:
    """What the media of a prompt add to it.

    Attributes:
        tokens: of the prompt, of which `placeholders` stand for media.
        vision, audio: spans of the positions of the towers.
        seen, heard: pictures and videos, and sounds, that these are of.
    """

    tokens: int = 0
    placeholders: int = 0
    vision: tuple[Span, ...] = ()
    audio: tuple[Span, ...] = ()
    seen: int = 0
    heard: int = 0

    def positions(self, ranks: int = 1) -> Mapping[str, int]:
        """How many positions go through each tower, on that of `ranks` that share a row which has most of them."""
        whole = (sum(span.length for span in own) for own in (self.vision, self.audio))
        return {tower: round(number * self.share(tower, ranks)) for tower, number in zip(TOWERS, whole, strict=True)}

    def share(self, tower: str, ranks: int) -> float:
        """The part of a row's media that a tower reads on one of `ranks` that share it: they share whole ones."""
        items = self.seen if tower == TOWERS[0] else self.heard
        return -(-items // ranks) / items if items else 1.0


def media_of(spec: FamilySpec, asked: Asked) -> Media:
    """Returns what the media that are asked for add to a prompt, as the processor of the family makes them.

    Raises SettingsError for media that the family does not read, and ModelError where its processor takes none of the
    size that is asked for.
    """
    from PIL import Image

    side = asked.image_size or SIDE
    made: list[tuple[MediaKind, Any]] = [('image', Image.new('RGB', (side, side))) for _ in range(asked.images)]
    if asked.frames:
        shown = np.arange(asked.frames) / 2
        made.append(('video', Video(np.zeros((asked.frames, side, side, 3), np.uint8), shown, 2.0)))
    if asked.seconds:
        rate = spec.audio_rate or 1
        made.append(('audio', Audio(np.zeros(round(asked.seconds * rate), np.float32), rate)))
    if not made:
        return Media()
    missing = sorted({kind for kind, _ in made} - spec.continuous)
    if missing:
        raise SettingsError([f"models of type '{spec.model_type}' read no {missing[0]}, which was asked for."])
    spec.max_length = sys.maxsize
    words = {'type': 'text', 'text': 'What is it?'}
    parts = [{'type': kind, kind: medium} for kind, medium in made]
    answer = {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Nothing.'}]}
    plain, full = (
        spec.encode([{'role': 'user', 'content': content}, answer]).prompt for content in ([words], [*parts, words])
    )
    vision, audio = tower_spans(full.media, spec)
    seen, heard = asked.images + bool(asked.frames), int(bool(asked.seconds))
    return Media(len(full) - len(plain), media_in(full.ids, spec), tuple(vision), tuple(audio), seen, heard)


def token_subject(spec: Architecture | FamilySpec, algorithm: Algorithm, asked: Asked, media: Media) -> Subject:
    """Returns what a plan must know of a model that reads and writes tokens.

    Raises ModelError for a configuration that no class here trains.
    """
    plain = structure.skeleton(spec.config).to(torch.bfloat16).requires_grad_(False)
    model = structure.skeleton(spec.config).to(torch.bfloat16)
    if asked.use_lora:
        model = apply_lora(model, LoraCfgs(use_lora=True), spec.components)
    frozen, work = work_of_model(plain, spec, recomputes=0.0), work_of_model(model, spec, recomputes=1.0)
    sizes = sizes_of(spec, algorithm, asked, media)
    row = sum(span.length for span in sizes.text)
    if algorithm.generates:
        # Each response is a row of its own.
        row = sizes.text[0].length + asked.response
    text = spec.config.get_text_config()

    @cache
    def kept(recomputes: Checkpointing | None, tiles: int, ranks: int) -> float:
        return activations_of(model, spec, -(-row // ranks), HALF, recomputes, tiles, positions=media.positions(ranks))

    beside = _passes_beside(algorithm)
    changed = partial(_changed, media)

    def passes(settings: Settings) -> Flops:
        share = _share(settings.recomputes, text.num_hidden_layers)
        return _passes(changed(work, share, settings), changed(frozen, 0.0, settings), beside, algorithm, sizes)

    def exchanged(settings: Settings) -> float:
        share, ranks = _share(settings.recomputes, text.num_hidden_layers), settings.sequence_parallel
        if ranks == 1:
            return 0.0
        tokens = sum(span.length for span in sizes.text)
        return tokens * _sent_of_token(text, ranks) * (2 + share + beside)

    return Subject(
        model,
        plain,
        bytes_spared(BnbCfgs(use_bnb=asked.use_bnb), model, spec.components, HALF),
        [None, *(Checkpointing(number) for number in EVERY if _can_choose(plain)), ALL_LAYERS],
        lambda settings: kept(settings.recomputes, settings.tiles, settings.sequence_parallel),
        float(row * HALF * text.hidden_size * text.num_hidden_layers),
        passes,
        sum(span.length for span in sizes.text),
        'tokens',
        tiles=_can_tile(plain, spec),
        sharing=_sharing(spec, asked.gpus),
        exchanged=exchanged,
    )


def sizes_of(spec: Architecture | FamilySpec, algorithm: Algorithm, asked: Asked, media: Media) -> Sizes:
    """Returns what the policy is given with one prompt and its responses."""
    responses = {'preference': 2, 'prompt': asked.generations}.get(algorithm.task, 1)
    prompt = asked.prompt + media.tokens
    own = Span(asked.response, prompt)
    text = [Span(prompt + asked.response)] if responses == 1 else [Span(prompt), *[own] * responses]
    scored = float(responses * asked.response * spec.config.get_text_config().vocab_size)
    return Sizes(text, media.placeholders, media.vision, media.audio, scored=scored)


def _passes_beside(algorithm: Algorithm) -> int:
    """How often the responses are scored beside the update: by a reference, the sampling policy, with other prompts."""
    return int(algorithm.refers) + int(algorithm.generates) + int(algorithm.task == 'unpaired')


def _passes(work: Work, frozen: Work, beside: int, algorithm: Algorithm, sizes: Sizes) -> Flops:
    found = work.total(sizes)
    scoring = frozen.total(sizes).forward_only()
    for _ in range(beside):
        found += scoring
    if algorithm.generates:
        for _ in algorithm.critics:
            found += work.total(replace(sizes, scored=0.0)) + scoring
    return found


def _changed(media: Media, work: Work, share: float, settings: Settings) -> Work:
    """The operations where `share` of the layers is computed again, and ranks that share a row share its media."""
    stacks, ranks = {}, settings.sequence_parallel
    for name, stack in work.stacks.items():
        # All of them together, as if each had as much as the one that has most.
        times = ranks * media.share(name, ranks) if name in TOWERS and ranks > 1 else 1
        stacks[name] = replace(
            stack,
            weights=times * stack.weights,
            trained=times * stack.trained,
            inner=times * stack.inner,
            attention={window: times * each for window, each in stack.attention.items()},
            recomputes=share * stack.recomputes,
            tiled=name == 'language_model' and settings.tiles > 1,
        )
    return replace(work, stacks=stacks)


def _share(recomputes: Checkpointing | None, layers: int) -> float:
    return 0.0 if recomputes is None else recomputes.recomputed(layers) / layers


def _sent_of_token(text: Any, ranks: int) -> float:
    """Bytes of one token that go to other ranks in a forward pass: queries, keys, values, and what attention found.

    Fewer heads of keys than ranks are repeated (`policies/token/sequence_parallel.py`).
    """
    heads = text.num_attention_heads
    known = text.to_dict()
    size = known.get('head_dim') or text.hidden_size // heads
    of_keys = max(known.get('num_key_value_heads') or heads, ranks)
    return HALF * text.num_hidden_layers * 2 * (heads + of_keys) * size * (ranks - 1) / ranks


def _sharing(spec: Architecture | FamilySpec, gpus: int) -> list[int]:
    """How many ranks can share a row: heads divide (`policies/token/plan.py`)."""
    text = spec.config.get_text_config().to_dict()
    heads = text.get('num_attention_heads') or 1
    of_keys = text.get('num_key_value_heads') or heads
    if 'packed' not in structure.layouts(spec.config):
        return []
    dividing = [ranks for ranks in SHARING if gpus % ranks == 0 and heads % ranks == 0]
    return [ranks for ranks in dividing if of_keys % ranks == 0 or ranks % of_keys == 0]


def _can_tile(model: nn.Module, spec: Architecture | FamilySpec) -> bool:
    try:
        gated_mlps(model, spec.component_of)
    except ModelError:
        return False
    return True


def _can_choose(model: nn.Module) -> bool:
    """Whether some layers can be computed again and others not."""
    try:
        enable_gradient_checkpointing(model, Checkpointing(every=2))
    except ModelError:
        return False
    return True
