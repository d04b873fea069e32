"""Prompts as other engines take them: placeholders not yet expanded, and the decoded media beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from align_anything.core.types import Audio, Example, MediaKind, Video
from align_anything.models.family import FamilySpec
from align_anything.models.media_arguments import video_metadata


def untouched(spec: FamilySpec, example: Example) -> dict[str, Any]:
    """Returns the prompt of an Example in vLLM's form: `prompt_token_ids`, and `multi_modal_data` by kind.

    The engine's own processor expands the placeholders and makes tensors of the same decoded media that training uses.
    """
    if not example.prompt.media_counts:
        return {'prompt_token_ids': example.prompt.ids.tolist()}
    run = spec.render_prompt(example.conversation or [])
    media: dict[MediaKind, list[Any]] = {}
    for kind, item in run.media:
        media.setdefault(kind, []).append(_handed(item))
    return {'prompt_token_ids': spec.encoder.unexpanded(run), 'multi_modal_data': media}


def _handed(item: Any) -> Any:
    if isinstance(item, Audio):
        return np.asarray(item.samples), item.rate
    if isinstance(item, Video):
        metadata = video_metadata(item)
        return item.frames, {**vars(metadata), 'do_sample_frames': False}
    return item
