"""What pi0 predicts: a step is read once, and whatever is denoised on it reads the keys and values of that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.adapter import bare_model
from align_anything.models.diffusion.process import wide
from align_anything.policies.acting.flow.collator import Seen


def read(model: nn.Module, seen: Seen, dtype: torch.dtype) -> Any:
    """Returns the cache of keys and values that the vision-language model makes of each step."""
    inner = bare_model(model).model
    embedded = inner.embed_prefix(seen.ids, seen.frames.to(dtype), seen.cameras)
    return inner.vlm(
        inputs_embeds=embedded,
        attention_mask=seen.mask,
        position_ids=seen.mask.cumsum(-1) - 1,
        # Everything is read in both directions.
        token_type_ids=torch.zeros_like(seen.ids),
        use_cache=True,
        return_dict=True,
    ).past_key_values


def spread(cache: Any, step_of: Tensor, steps: int) -> Any:
    """Returns the cache with the row of its step for each of `step_of` `(rows,)`, out of that many steps."""
    if len(step_of) != steps or not torch.equal(step_of, torch.arange(steps, device=step_of.device)):
        cache.batch_select_indices(step_of)
    return cache


def velocity(
    model: nn.Module, cache: Any, seen: Seen, step_of: Tensor, sample: Tensor, level: Tensor, dtype: torch.dtype
) -> Tensor:
    """Returns the velocity of each sample `(rows, chunk, numbers)` at its level `(rows,)`, float32 of its shape.

    The keys and values of these rows are appended to the cache; crop it before it is read again.
    """
    bare = bare_model(model)
    _tell_times_exactly(bare)
    predicted = bare(
        state=seen.state.to(dtype)[step_of],
        noise=sample.to(dtype),
        timestep=level,
        attention_mask=seen.mask[step_of],
        past_key_values=cache,
    ).logits
    return wide(predicted)


def _tell_times_exactly(model: Any) -> None:
    """Gives a model in half precision its frequencies back: rounded, the fastest would tell any time but the one."""
    times = model.embed_action_time.sinusoid_embeds
    if times.sinusoid_freq.dtype in (torch.bfloat16, torch.float16):
        times.sinusoid_freq = times.compute_freqs(model.config).to(times.sinusoid_freq.device)
