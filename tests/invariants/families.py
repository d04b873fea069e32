"""Families, their rows, and what plain transformers computes for them one sequence at a time.

Nothing here uses the collator, the policy or the engines: it is what those are compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from align_anything.core.types import Conversation, Example, Piece
from align_anything.models.encoding import UNUSED_OUTPUTS
from align_anything.models.family import FamilySpec
from tests.models.samples import assistant, load, user

TEXT = ('llama', 'qwen2', 'qwen3', 'qwen3_moe', 'opt', 'gemma3_text', 'granite')
IMAGE = ('gemma3', 'llava', 'llava_next', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'idefics3')
FAMILIES = TEXT + IMAGE
WITHOUT_FILE = ('granite', 'idefics3')
# Both kinds of layers, and a window (64) that is shorter than the longest row.
OPTIONS = {'gemma3': {'layers': 6, 'hidden': 32}, 'gemma3_text': {'layers': 6, 'hidden': 32}}
LAYOUTS = ('padded', 'packed', 'shared_prefix')

LONG = 'one two three four five six seven eight nine ten eleven twelve ' * 3

# For each optimizer step and rank the micro-batches, by kind of row. One rank has images where the other has none, a
# rank has none in a whole step, and no rank has any in a whole micro-batch.
SCHEDULE = (
    ((('image', 'text'), ('text',)), (('text',), ('group', 'image'))),
    ((('text',), ('text',)), (('image',), ('image', 'text'))),
    ((('image',), ('text', 'image')), (('text',), ('text',))),
)


@dataclass(frozen=True)
class Row:
    """An Example, and the arguments of the plain model for each of its responses."""

    example: Example
    sequences: list[dict[str, Tensor]]

    @property
    def has_image(self) -> bool:
        return any(piece.media for piece in (self.example.prompt, *self.example.responses))


def photo(width: int, height: int, seed: int) -> dict[str, Any]:
    """A picture without two equal pixels in a row, so that no position in it can be confused with another."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return {'type': 'image', 'image': Image.fromarray(pixels)}


def text_conversations() -> list[Conversation]:
    """One turn, several turns, and longer than any window."""
    return [
        [user('What is 1 + 1?'), assistant('It is two.')],
        [user('Hi'), assistant('Hello!'), user('2 + 2?'), assistant('Four, I think.'), user('Sure?'), assistant('Yes')],
        [user(LONG), assistant('That was a long row of numbers, ' + LONG)],
    ]  # fmt: skip


def image_conversations() -> list[Conversation]:
    """Sizes that differ, several images, and images that come only in a later turn."""
    return [
        [user(photo(60, 40, 1), 'What is this?'), assistant('A grey noise.')],
        [user(photo(70, 50, 2), photo(30, 90, 3), 'What are these?'), assistant('Two noises of other shapes.')],
        [user('Hi'), assistant('Hello!'), user(photo(90, 50, 4), 'And this?'), assistant('Green.')],
        [user(photo(56, 56, 5), 'One'), assistant('1'), user('Two', photo(112, 60, 6)), assistant('2 it is, ' + LONG)],
    ]


def pictures(conversation: Conversation) -> list[Image.Image]:
    return [part['image'] for message in conversation for part in message['content'] if part['type'] == 'image']


def rows_of(spec: FamilySpec) -> list[Row]:
    """Supervised rows: images where the family takes them, text between them."""
    texts = [_row(spec, conversation) for conversation in text_conversations()]
    if not spec.media_kinds:
        return [*texts, _row(spec, text_conversations()[1], 'last'), _row(spec, text_conversations()[0], 'all')]
    images = [_row(spec, conversation) for conversation in image_conversations()]
    prompt_too = _row(spec, image_conversations()[0], 'all')
    return [images[0], texts[0], images[1], texts[2], images[2], images[3], texts[1], prompt_too]


def groups_of(spec: FamilySpec) -> list[Row]:
    """Examples with several responses: after text, after images, one with an image of its own, weights uneven."""
    generator = torch.Generator().manual_seed(3)
    plain = ordinary(spec)

    def reply(length: int) -> Piece:
        picks = torch.randint(len(plain), (length,), generator=generator)
        weights = torch.rand(length, generator=generator) + 0.5
        weights[length // 2] = 0.0
        return Piece(torch.tensor(plain)[picks], weights)

    conversations = [text_conversations()[1], text_conversations()[2]]
    if spec.media_kinds:
        conversations = [conversations[0], image_conversations()[1], image_conversations()[0], image_conversations()[2]]
    found = []
    for number, conversation in enumerate(conversations):
        base = spec.encode(conversation, 'all' if number == 0 else 'all_assistant')
        if number == 0:
            # Trained prompts: each prompt token counts once, however many responses follow it.
            base = replace(base, prompt=replace(base.prompt, weights=torch.ones_like(base.prompt.weights)))
        example = replace(base, responses=[reply(5 + number), base.responses[0], reply(9)][: 3 - number % 2])
        images = pictures(conversation)
        own = sum(base.prompt.media_counts.values())
        sequences = [
            hf_inputs(spec, torch.cat([base.prompt.ids, piece.ids]), images if piece.media_counts else images[:own])
            for piece in example.responses
        ]
        found.append(Row(example, sequences))
    return found


def ordinary(spec: FamilySpec) -> list[int]:
    special = set(spec.tokenizer.added_tokens_decoder) | set(spec.tokenizer.all_special_ids) | spec.media_token_ids
    return [token for token in range(200) if token not in special]


def _row(spec: FamilySpec, conversation: Conversation, train_on: Any = 'all_assistant') -> Row:
    example = spec.encode(conversation, train_on)
    ids = torch.cat([example.prompt.ids, example.responses[0].ids])
    return Row(example, [hf_inputs(spec, ids, pictures(conversation))])


def hf_inputs(spec: FamilySpec, ids: Tensor, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """Arguments of the plain model: media from one call of the processor, no positions (the model knows its own)."""
    inputs = {'input_ids': ids[None], 'attention_mask': torch.ones_like(ids)[None]}
    if images:
        text = ' '.join([spec.placeholder('image')] * len(images))
        outputs = spec.processor(text=[text], images=[list(images)], return_tensors='pt')
        inputs |= {name: value for name, value in outputs.items() if name not in UNUSED_OUTPUTS}
    if spec.media_kinds:
        is_image = torch.isin(ids, torch.tensor([spec.config.image_token_id]))[None].long()
        inputs |= dict.fromkeys(spec.token_tensor_names, is_image)
    return inputs


def load_plain(folder: Path, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The checkpoint as a user without this package loads it."""
    is_image = any((folder / name).exists() for name in ('preprocessor_config.json', 'processor_config.json'))
    auto = AutoModelForImageTextToText if is_image else AutoModelForCausalLM
    return double_experts(auto.from_pretrained(folder, dtype=dtype, attn_implementation='sdpa'))


def double_experts(model: nn.Module) -> nn.Module:
    """Lets mixtures of experts run in float64, for which their grouped kernel is not made."""
    if model.dtype == torch.float64 and model.config.model_type == 'qwen3_moe':
        model.set_experts_implementation('eager')
    return model


def spec_of(folder: Path, *, pad_is_eos: bool = False) -> FamilySpec:
    return load(folder, pad_is_eos=pad_is_eos)


@cache
def rows(folder: Path, pad_is_eos: bool = False) -> tuple[FamilySpec, tuple[Row, ...], tuple[Row, ...]]:
    """The family's spec, its supervised rows and its groups; made once a process."""
    spec = spec_of(folder, pad_is_eos=pad_is_eos)
    return spec, tuple(rows_of(spec)), tuple(groups_of(spec))


def schedule(folder: Path) -> list[list[list[list[Row]]]]:
    """Rows by step, rank and micro-batch. Text families have text where others have images."""
    _, singles, groups = rows(folder)
    images = [row for row in singles if row.has_image] or list(singles)
    texts = [row for row in singles if not row.has_image]
    kinds = {'image': images, 'text': texts, 'group': [row for row in groups if row.has_image] or list(groups)}
    taken = dict.fromkeys(kinds, 0)

    def take(kind: str) -> Row:
        taken[kind] += 1
        return kinds[kind][taken[kind] % len(kinds[kind])]

    return [[[[take(kind) for kind in micro] for micro in rank] for rank in step] for step in SCHEDULE]


def sequence_logprobs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Log-probability of each token but the first of one sequence, from the model's full logits, `(length - 1,)`."""
    dtype = next(model.parameters()).dtype
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    logits = model(**cast, use_cache=False).logits[0].double()
    ids = inputs['input_ids'][0]
    return logits[:-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)


def reference_units(model: nn.Module, row: Row) -> tuple[Tensor, Tensor]:
    """Scores and weights of a row's units: its prompt's once, before those of the first response."""
    scores, weights = [], []
    example = row.example
    for number, (piece, inputs) in enumerate(zip(example.responses, row.sequences, strict=True)):
        of_prompt = example.prompt.weights if number == 0 else torch.zeros_like(example.prompt.weights)
        wanted = torch.cat([of_prompt, piece.weights])[1:]
        logprobs = sequence_logprobs(model, inputs)
        scores.append(logprobs[wanted > 0])
        weights.append(wanted[wanted > 0])
    return torch.cat(scores), torch.cat(weights)


@cache
def reference_scores(folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Scores of every supervised row and of every group, in float64, one sequence at a time."""
    model = load_plain(folder).eval()
    _, singles, groups = rows(folder)
    with torch.no_grad():
        return tuple([reference_units(model, row)[0] for row in part] for part in (singles, groups))


def accumulate_gradients(model: nn.Module, chosen: Sequence[Row]) -> float:
    """Adds the gradient of the weighted token mean over `chosen` to `model`, one row at a time; returns the loss."""
    count = sum(
        float(torch.cat([row.example.prompt.weights, row.example.responses[0].weights])[1:].sum())
        + sum(float(piece.weights.sum()) for piece in row.example.responses[1:])
        for row in chosen
    )
    total = 0.0
    for row in chosen:
        scores, weights = reference_units(model, row)
        loss = -(scores * weights).sum() / count
        loss.backward()
        total += float(loss.detach())
    return total


def freeze(model: nn.Module, spec: FamilySpec, part: str | None) -> nn.Module:
    """Freezes the parameters of one part by the prefixes that the family declares."""
    for name, parameter in model.named_parameters():
        if part is not None and spec.part_of(name) == part:
            parameter.requires_grad_(False)
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: copy.deepcopy(tensor.detach()) for name, tensor in model.named_parameters()}
