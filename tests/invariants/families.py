"""Families, their rows, and what plain transformers computes for them one sequence at a time.

Nothing here uses the collator, the policy or the engines: it is what those are compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from align_anything.core.types import Conversation, Example, Piece
from align_anything.models import structure
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import TrainOn, media_of
from tests.invariants.plain_inputs import plain_inputs
from tests.models.mixed import MEDIA, ONE_PROMPT, PADDED_ONLY, clip, sound
from tests.models.samples import CODED, assistant, load, user

TEXT = ('llama', 'qwen2', 'qwen3', 'qwen3_moe', 'opt', 'gemma3_text', 'granite')
IMAGE = ('gemma3', 'llava', 'llava_next', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'idefics3')
WIDER = (
    'internvl',
    'gemma4',
    'llava_next_video',
    'llava_onevision',
    'llava_interleave',
    'idefics2',
    'smolvlm',
    'mllama',
    'paligemma',
    'qwen2_audio',
    'qwen2_5_omni_thinker',
    'qwen3_omni_moe_thinker',
    'composed',
    'janus',
)
MULTIMODAL = IMAGE + WIDER
FAMILIES = TEXT + MULTIMODAL + CODED
WRITING = ('janus', *CODED)
"""Families that write pictures."""
LAYOUTS = ('padded', 'packed', 'shared_prefix')
FAMILY_LAYOUTS = [
    (family, layout) for family in FAMILIES for layout in (LAYOUTS[:1] if family in PADDED_ONLY else LAYOUTS)
]
"""Each family with each layout that it declares."""
# Images that come after an answer are seen by what precedes them in transformers' Mllama, and have no place in the
# one prompt of PaliGemma.
MEDIA_FIRST = ('mllama', *ONE_PROMPT)
OPTIONS = {
    # Both kinds of layers, and a window (64) that is shorter than the longest row.
    **dict.fromkeys(('gemma3', 'gemma3_text'), {'layers': 6, 'hidden': 32}),
    **dict.fromkeys((*WIDER, *CODED), {'hidden': 32}),
}

LONG = 'one two three four five six seven eight nine ten eleven twelve ' * 3

# For each optimizer step and rank the micro-batches, by kind of row. One rank has media where the other has none, and a
# rank has none in a whole step.
SCHEDULE = (
    ((('media', 'text'), ('text',)), (('text',), ('group', 'media'))),
    ((('text',), ('text',)), (('media',), ('media', 'text'))),
    ((('media',), ('text', 'media')), (('text',), ('text',))),
)
# Each rank has media of another kind, then none has any.
APART = (((('media',), ('text',)), (('media',), ('text',))),)


@dataclass(frozen=True)
class Row:
    """An Example, and the arguments of the plain model for each sequence of its responses."""

    example: Example
    sequences: list[dict[str, Tensor]]
    coded: bool = False
    """Whether media stand in it as codes."""

    @property
    def has_media(self) -> bool:
        pieces = [piece for response in self.example.responses for piece in response.sequences]
        return self.coded or any(piece.media for piece in (self.example.prompt, *pieces))


def photo(width: int, height: int, seed: int) -> dict[str, Any]:
    """An image without two equal pixels in a row, so that no position in it can be confused with another."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return {'type': 'image', 'image': Image.fromarray(pixels)}


def text_conversations() -> list[Conversation]:
    """One turn, several turns, and longer than any window."""
    return [
        [user('What is 1 + 1?'), assistant('It is two.')],
        [user('Hi'), assistant('Hello!'), user('2 + 2?'), assistant('Four, I think.'), user('Sure?'), assistant('Yes')],
        [user(LONG), assistant('That was a long row of numbers, ' + LONG)],
    ]  # fmt: skip


def medium(kind: str, number: int, frames: int = 4) -> dict[str, Any]:
    """The `number`-th medium of a kind, each of another size; videos of one turn are equally long."""
    if kind == 'image':
        return photo(*[(60, 40), (70, 50), (30, 90), (90, 50), (56, 56), (112, 60)][number], number + 1)
    if kind == 'video':
        return clip(frames, *[(40, 60), (64, 32), (48, 48), (32, 64), (56, 40), (40, 40)][number], seed=number + 1)
    # Of a second or more: transformers' Qwen3-Omni makes the features of shorter ones hang on what is beside them.
    return sound([1.13, 1.4, 1.0, 1.27, 1.05, 1.6][number], pitch=300.0 + 100 * number)


def media_conversations(family: str) -> list[Conversation]:
    """Sizes that differ, several media and kinds in a turn, and, where a family can, media only in a later turn."""
    kinds = MEDIA.get(family, ('image',))
    # Gemma 4 makes seventy tokens of every frame.
    some = partial(medium, frames=2 if family == 'gemma4' else 4)
    several = [some(kinds[0], 1), some(kinds[0], 2), *(some(kind, 1) for kind in kinds[1:])]
    found = [
        [user(some(kinds[-1], 0), 'What is this?'), assistant('A grey noise.')],
        [user(*several, 'What are these?'), assistant('Two noises of other shapes.')],
    ]
    if family in MEDIA_FIRST:
        return [
            *found,
            [user(some(kinds[0], 3), 'Hi'), assistant('Hello!'), user('And this?'), assistant('Green.')],
            [
                user(some(kinds[0], 4), some(kinds[0], 5), 'One'),
                assistant('1'),
                user('Two'),
                assistant('2, ' + LONG),
            ],
        ]
    first, second = some(kinds[-1], 4), some(kinds[1 % len(kinds)], 5)
    if family in WRITING:
        found.append(
            [user('Draw!'), {'role': 'assistant', 'content': [some('image', 3)]}, user('And?'), assistant('Hm.')]
        )
    return [
        *found,
        [user('Hi'), assistant('Hello!'), user(some(kinds[0], 3), 'And this?'), assistant('Green.')],
        [user(first, 'One'), assistant('1'), user('Two', second), assistant('2 it is, ' + LONG)],
    ]  # fmt: skip


def rows_of(spec: FamilySpec, family: str) -> list[Row]:
    """Supervised rows: media where the family takes them, text between them."""
    every = 'last' if family in ONE_PROMPT else 'all_assistant'
    texts = [_row(spec, conversation, every) for conversation in text_conversations()]
    if not spec.reads:
        return [*texts, _row(spec, text_conversations()[1], 'last'), _row(spec, text_conversations()[0], 'all')]
    conversations = media_conversations(family)
    media = [_row(spec, conversation, every) for conversation in conversations]
    again = _row(spec, conversations[0], 'last' if family in ONE_PROMPT else 'all')
    return [media[0], texts[0], media[1], texts[2], *media[2:], texts[1], again]


def groups_of(spec: FamilySpec, family: str) -> list[Row]:
    """Examples with several responses: after text, after media, one with a medium of its own, weights uneven."""
    generator = torch.Generator().manual_seed(3)
    plain = ordinary(spec)

    def reply(length: int) -> Piece:
        picks = torch.randint(len(plain), (length,), generator=generator)
        weights = torch.rand(length, generator=generator) + 0.5
        weights[length // 2] = 0.0
        return Piece(torch.tensor(plain)[picks], weights)

    conversations = [text_conversations()[1], text_conversations()[2]]
    if spec.reads:
        with_media = media_conversations(family)
        conversations = [conversations[0], with_media[1], with_media[0], with_media[2]]
    found = []
    for number, conversation in enumerate(conversations):
        train_on = 'last' if family in ONE_PROMPT else 'all' if number == 0 else 'all_assistant'
        base = spec.encode(conversation, train_on)
        if train_on == 'all':
            # Trained prompts: each prompt token counts once, however many responses follow it.
            base = replace(base, prompt=replace(base.prompt, weights=torch.ones_like(base.prompt.weights)))
        example = replace(base, responses=[reply(5 + number), base.responses[0], reply(9)][: 3 - number % 2])
        found.append(_whole_row(spec, example, conversation))
    return found


def ordinary(spec: FamilySpec) -> list[int]:
    special = set(spec.tokenizer.added_tokens_decoder) | set(spec.tokenizer.all_special_ids) | spec.media_token_ids
    return [token for token in range(200) if token not in special]


def _row(spec: FamilySpec, conversation: Conversation, train_on: TrainOn) -> Row:
    example = spec.encode(conversation, train_on)
    return _whole_row(spec, example, conversation)


def _whole_row(spec: FamilySpec, example: Example, conversation: Conversation) -> Row:
    ids = torch.cat([piece.ids for piece in (example.prompt, *example.responses)])
    coded = spec.codes is not None and bool(spec.codes.is_code(ids).any())
    return Row(example, _sequences(spec, example, conversation), coded)


def _sequences(spec: FamilySpec, example: Example, conversation: Conversation) -> list[dict[str, Tensor]]:
    """The arguments for each sequence: its beginning of the prompt, itself, and the media that stand in both."""
    media = media_of(message for message in conversation if message['role'] == 'user') if spec.continuous else ()
    shown = sum(example.prompt.media_counts.values())
    found = []
    for piece in (piece for response in example.responses for piece in response.sequences):
        start = beginning_of(example, piece)
        own = (shown if start else 0) + sum(piece.media_counts.values())
        # One whole conversation may hold more than is counted: the audio of its videos.
        every = piece is example.responses[0] and not piece.earlier and len(example.responses) == 1
        found.append(plain_inputs(spec, example.prompt.ids[:start], piece.ids, media if every else media[:own]))
    return found


def beginning_of(example: Example, piece: Piece) -> int:
    """How many tokens of the prompt a sequence begins with."""
    return len(example.prompt) if piece.prefix_length is None else piece.prefix_length


def precision(family: str) -> torch.dtype:
    """The widest type in which transformers computes the family; Gemma 4 hears in float32 only."""
    return torch.float32 if family == 'gemma4' else torch.float64


def load_plain(folder: Path, dtype: torch.dtype | None = None) -> nn.Module:
    """The checkpoint as a user without this package loads it, in its widest type unless `dtype` says otherwise."""
    dtype = precision(family_of(folder)) if dtype is None else dtype
    has_media = any((folder / name).exists() for name in ('preprocessor_config.json', 'processor_config.json'))
    auto = AutoModelForMultimodalLM if has_media else AutoModelForCausalLM
    model = double_experts(auto.from_pretrained(folder, dtype=dtype, attn_implementation='sdpa'))
    # What a constructor freezes (tables of positions) a plain load makes trainable again.
    for name, parameter in structure.skeleton(model.config).named_parameters():
        if not parameter.requires_grad:
            model.get_parameter(name).requires_grad_(False)
    return model


def double_experts(model: nn.Module) -> nn.Module:
    """Lets mixtures of experts run in float64, for which their grouped kernel is not made."""
    if model.dtype == torch.float64 and 'moe' in model.config.model_type:
        model.set_experts_implementation('eager')
    return model


def spec_of(folder: Path, *, pad_is_eos: bool = False) -> FamilySpec:
    return load(folder, pad_is_eos=pad_is_eos)


@cache
def rows(folder: Path, pad_is_eos: bool = False) -> tuple[FamilySpec, tuple[Row, ...], tuple[Row, ...]]:
    """The family's spec, its supervised rows and its groups; made once a process."""
    spec = spec_of(folder, pad_is_eos=pad_is_eos)
    family = family_of(folder)
    return spec, tuple(rows_of(spec, family)), tuple(groups_of(spec, family))


def family_of(folder: Path) -> str:
    """The family of a folder of the fixture `stirred`."""
    return folder.name.partition('-stirred')[0]


def schedule(folder: Path) -> list[list[list[list[Row]]]]:
    """Rows by step, rank and micro-batch. Text families have text where others have media."""
    _, singles, groups = rows(folder)
    media = [row for row in singles if row.has_media] or list(singles)
    texts = [row for row in singles if not row.has_media]
    kinds = {'media': media, 'text': texts, 'group': [row for row in groups if row.has_media] or list(groups)}
    taken = dict.fromkeys(kinds, 0)

    def take(kind: str) -> Row:
        taken[kind] += 1
        return kinds[kind][taken[kind] % len(kinds[kind])]

    family = family_of(folder)
    steps = SCHEDULE[:2] + APART if family in WIDER else SCHEDULE
    return [[[[take(kind) for kind in micro] for micro in rank] for rank in step] for step in steps]


def sequence_logprobs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Log-probability of each token but the first of one sequence, from the model's full logits, `(length - 1,)`."""
    dtype = next(model.parameters()).dtype
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    if 'num_frames_per_video' in cast:
        # transformers' Gemma 4 does not hand this on to its own method; features come of all kinds or of none.
        clips = [cast.pop(name) for name in ('pixel_values_videos', 'video_position_ids', 'num_frames_per_video')]
        features = {'video': model.model.get_video_features(*clips, return_dict=True)}
        if 'pixel_values' in cast:
            images = [cast.pop(name) for name in ('pixel_values', 'image_position_ids')]
            features['image'] = model.model.get_image_features(*images, return_dict=True)
        cast['mm_encoder_outputs'] = features
    logprobs = _janus(model, **cast) if model.config.model_type == 'janus' else _logits(model, cast).log_softmax(-1)
    # The token of an image may lie behind the vocabulary; it is never scored.
    ids = inputs['input_ids'][0].clamp(max=logprobs.shape[1] - 1)
    return logprobs[:-1].gather(1, ids[1:, None]).squeeze(1)


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    if model.config.model_type == 'chameleon':
        # The class itself hides the codes.
        return model.lm_head(model.model(**inputs, use_cache=False).last_hidden_state)[0].double()
    return model(**inputs, use_cache=False).logits[0].double()


def _janus(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor | None = None) -> Tensor:
    """Log-probabilities of text and of codes, each among its own: by modules of the plain class, whose `forward` knows
    no codes, all computed for every token.
    """
    rows, plain = model.config.text_config.vocab_size, model.model
    words = model.get_input_embeddings()(input_ids.clamp(max=rows - 1))
    codes = model.prepare_embeddings_for_image_generation((input_ids - rows).clamp(min=0))
    embeds = torch.where((input_ids >= rows)[..., None], codes, words)
    if pixel_values is not None:
        embeds = embeds.clone()
        seen = plain.aligner(plain.vision_model(pixel_values).last_hidden_state)
        embeds[input_ids == model.config.image_token_id] = seen.flatten(0, 1)
    hidden = plain.language_model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False)
    heads = (model.lm_head, plain.generation_head)
    return torch.cat([head(hidden.last_hidden_state[0]).double().log_softmax(-1) for head in heads], -1)


def reference_units(model: nn.Module, row: Row) -> tuple[Tensor, Tensor]:
    """Scores and weights of a row's units: its prompt's once, before those of the sequences that show them first."""
    scores, weights = [], []
    example, counted = row.example, 0
    pieces = [piece for response in example.responses for piece in response.sequences]
    for piece, inputs in zip(pieces, row.sequences, strict=True):
        start = beginning_of(example, piece)
        of_prompt = example.prompt.weights[:start].clone()
        of_prompt[: min(counted, start)] = 0
        counted = max(counted, start)
        wanted = torch.cat([of_prompt, piece.weights])[1:]
        logprobs = sequence_logprobs(model, inputs)
        scores.append(logprobs[wanted > 0])
        weights.append(wanted[wanted > 0])
    return torch.cat(scores), torch.cat(weights)


@cache
def reference_scores(folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Scores of every supervised row and of every group, in the widest type, one sequence at a time."""
    model = load_plain(folder).eval()
    _, singles, groups = rows(folder)
    with torch.no_grad():
        return tuple([reference_units(model, row)[0] for row in part] for part in (singles, groups))


def accumulate_gradients(model: nn.Module, chosen: Sequence[Row]) -> float:
    """Adds the gradient of the weighted token mean over `chosen` to `model`, one row at a time; returns the loss."""
    count = sum(
        float(row.example.prompt.weights[1:].sum())
        + sum(float(piece.weights.sum()) for response in row.example.responses for piece in response.sequences)
        for row in chosen
    )
    total = 0.0
    for row in chosen:
        scores, weights = reference_units(model, row)
        loss = -(scores * weights).sum() / count
        loss.backward()
        total += float(loss.detach())
    return total


def freeze(model: nn.Module, spec: FamilySpec, component: str | None) -> nn.Module:
    """Freezes the parameters of one component by the prefixes that the family declares."""
    for name, parameter in model.named_parameters():
        if component is not None and spec.component_of(name) == component:
            parameter.requires_grad_(False)
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: copy.deepcopy(tensor.detach()) for name, tensor in model.named_parameters()}
