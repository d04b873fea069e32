"""Prompts as other engines take them: placeholders not yet expanded, and the decoded media beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from align_anything.core.types import Audio, Conversation, Example, MediaKind, Piece, Unexpanded, Video
from align_anything.models.family import FamilySpec
from align_anything.models.media_arguments import video_metadata


def untouched(spec: FamilySpec, example: Example) -> dict[str, Any]:
    """Returns the prompt of an Example in vLLM's form: `prompt_token_ids`, and `multi_modal_data` by kind.

    The engine's own processor expands the placeholders and makes tensors of the same decoded media that training uses.
    Media with names (`multi_modal_uuids`) are known by these, and not by what is in them.
    """
    if example.unexpanded is not None:
        return _grown(example.unexpanded)
    ids, found = unexpanded(spec, example.prompt, example.conversation or [])
    media: dict[MediaKind, list[Any]] = {}
    for kind, item in found:
        media.setdefault(kind, []).append(_handed(item))
    return {'prompt_token_ids': ids, **({'multi_modal_data': media} if media else {})}


def unexpanded(
    spec: FamilySpec, prompt: Piece, conversation: Conversation
) -> tuple[list[int], tuple[tuple[MediaKind, Any], ...]]:
    """Returns the ids of the prompt of a conversation with one placeholder for each medium, and those media."""
    if not prompt.media_counts:
        return prompt.ids.tolist(), ()
    run = spec.render_prompt(conversation)
    return spec.encoder.unexpanded(run), run.media


def _grown(prompt: Unexpanded) -> dict[str, Any]:
    if not prompt.media:
        return {'prompt_token_ids': prompt.ids}
    media: dict[MediaKind, list[Any]] = {}
    names: dict[MediaKind, list[str]] = {}
    for kind, item, name in prompt.media:
        media.setdefault(kind, []).append(_handed(item))
        names.setdefault(kind, []).append(name)
    return {'prompt_token_ids': prompt.ids, 'multi_modal_data': media, 'multi_modal_uuids': names}


def _handed(item: Any) -> Any:
    if isinstance(item, Audio):
        return np.asarray(item.samples), item.rate
    if isinstance(item, Video):
        metadata = video_metadata(item)
        return item.frames, {**vars(metadata), 'do_sample_frames': False}
    return item
