"""Images, videos and audio of unequal size in one conversation, and what transformers makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align_anything.core.types import Audio, Batch, Conversation, Example, Piece, Video
from align_anything.models.any_model import AnyModel
from align_anything.models.family import FamilySpec
from align_anything.models.media_arguments import video_metadata
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.models.samples import assistant, picture, user

MEDIA: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(('llava_interleave', 'idefics2', 'mllama', 'paligemma', 'janus'), ('image',)),
    **dict.fromkeys(('llava', 'llava_next', 'gemma3', 'idefics3'), ('image',)),
    **dict.fromkeys(('qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'internvl'), ('image', 'video')),
    **dict.fromkeys(('llava_next_video', 'llava_onevision', 'smolvlm'), ('image', 'video')),
    'qwen2_audio': ('audio',),
    'gemma3n': ('image', 'audio'),
    **dict.fromkeys(
        ('composed', 'gemma4', 'qwen2_5_omni_thinker', 'qwen3_omni_moe_thinker'), ('image', 'video', 'audio')
    ),
}
VIDEO = tuple(family for family, kinds in MEDIA.items() if 'video' in kinds)
AUDIO = tuple(family for family, kinds in MEDIA.items() if 'audio' in kinds)
PADDED_ONLY = ('mllama', 'paligemma')
ONE_PROMPT = ('paligemma',)
"""Families that read all but the last answer as one prompt, with their images in front of it."""
RATE = 16000


def clip(frames: int, height: int, width: int, *, seed: int = 0, every: float = 0.5) -> dict[str, Any]:
    """A video of coloured noise that plays at 8 frames a second, of which one `every` half second was picked."""
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    return {'type': 'video', 'video': Video(pixels, np.arange(frames) * every, 8.0)}


def sound(seconds: float, *, pitch: float = 440.0, rate: int = RATE) -> dict[str, Any]:
    """A tone."""
    time = np.arange(int(seconds * rate)) / rate
    return {'type': 'audio', 'audio': Audio((0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32), rate)}


def media(kind: str, number: int) -> dict[str, Any]:
    """The `number`-th medium of a kind, each of another size; videos are all equally long."""
    if kind == 'image':
        return picture(*[(60, 40), (30, 90), (90, 50)][number], ['red', 'blue', 'green'][number])
    if kind == 'video':
        return clip(4, *[(40, 60), (64, 32), (48, 48)][number], seed=number)
    return sound([0.31, 0.7, 1.13][number], pitch=[300, 500, 700][number])


def first_turn(kinds: Sequence[str], number: int = 0, answer: str = 'Noise.') -> Conversation:
    """One medium of each kind with words between them, and an answer."""
    parts = [part for kind in kinds for part in (media(kind, number), f'Some {kind}. ')]
    return [user(*parts, 'What is it?'), assistant(answer)]


def two_turns(kinds: Sequence[str]) -> Conversation:
    """Two media of each kind in the first turn, one in the second."""
    several = [media(kind, number) for number in (0, 1) for kind in kinds]
    last = [media(kind, 2) for kind in reversed(kinds)]
    return [user(*several, 'What are these?'), assistant('Noise.'), user('And', *last, 'now?'), assistant('More.')]


def in_front(kinds: Sequence[str]) -> Conversation:
    """Two media of each kind in front of all words, with a history, for families that read one prompt."""
    several = [media(kind, number) for number in (0, 1) for kind in kinds]
    return [user(*several, 'What are these?'), assistant('Noise.'), user('Sure?'), assistant('Yes.')]


def conversation_of(family: str) -> Conversation:
    """The richest conversation that the family can take."""
    return (in_front if family in ONE_PROMPT else two_turns)(MEDIA[family])


def plain_inputs(spec: FamilySpec, prompt: Conversation) -> dict[str, Tensor]:
    """What transformers' own `apply_chat_template` makes of a prompt."""
    unwrapped = [{**message, 'content': [_bare(part) for part in message['content']]} for message in prompt]
    clips = [part['video'] for message in prompt for part in message['content'] if part['type'] == 'video']
    how: dict[str, Any] = {}
    if clips:
        how |= {'do_sample_frames': False, 'video_metadata': [video_metadata(item) for item in clips]}
    if clips and 'omni' in spec.model_type:
        size = spec.processor.video_processor.to_dict()['size']
        # One frame every half second.
        how['videos_kwargs'] = {'size': size, 'fps': 2.0}
    return dict(
        spec.processor.apply_chat_template(
            unwrapped,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors='pt',
            processor_kwargs=how,
        )
    )


def _bare(part: dict[str, Any]) -> dict[str, Any]:
    if part['type'] == 'video':
        return {'type': 'video', 'video': part['video'].frames}
    return {'type': 'audio', 'audio': part['audio'].samples} if part['type'] == 'audio' else part


def policy_of(folder: Path, spec: FamilySpec, layout: str) -> TokenPolicy:
    """A policy in float32 with the attention that the layout needs."""
    model = AnyModel.from_pretrained(folder).eval()
    if layout != 'padded':
        from align_anything.models.pretrained_model import set_text_attention

        register_segment_attention()
        set_text_attention(model, SEGMENT_ATTENTION)
    return TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)


def scorer(policy: TokenPolicy) -> Callable[[Batch], Tensor]:
    """The scores alone, as checks take them."""
    return lambda batch: policy(batch).values


def logits_of(policy: TokenPolicy) -> Callable[[Batch], Tensor]:
    """The model's own logits, as checks take them."""
    return lambda batch: policy(batch, logits=True)


def ordinary_tokens(spec: FamilySpec) -> list[int]:
    """Ids of tokens that are plain text."""
    special = set(spec.tokenizer.added_tokens_decoder) | spec.media_token_ids
    return [token for token in range(min(len(spec.tokenizer), 300)) if token not in special]


def whole(spec: FamilySpec, example: Example) -> Piece:
    """Prompt and response of an example in one piece."""
    from align_anything.models.encoding import join

    return join([example.prompt, *example.responses], spec.merge_media)
