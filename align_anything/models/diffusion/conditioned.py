"""A denoiser and the text encoders that are trained along with it, in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.checkpointing import FLAG

LORA_TARGETS = ('q_proj', 'k_proj', 'v_proj', 'out_proj')
"""Ends of the names of the linear layers of CLIP that adapters go on by default, as in the scripts of diffusers."""


class Conditioned(nn.Module):
    """A denoiser beside the encoders that make its conditions; called as the denoiser."""

    def __init__(self, denoiser: str, parts: Mapping[str, nn.Module]) -> None:
        """Takes the networks by name, and the name of the denoiser among them."""
        super().__init__()
        self.denoiser = denoiser
        for name, network in parts.items():
            self.add_module(name, network)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the denoiser predicts."""
        return self.get_submodule(self.denoiser)(*args, **kwargs)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any]) -> None:
        """Makes the backward pass of all compute each block anew."""
        for name, network in self.named_children():
            if name == self.denoiser:
                network.enable_gradient_checkpointing(gradient_checkpointing_func)
            else:
                network.gradient_checkpointing_enable({'use_reentrant': False})
                for module in network.modules():
                    if FLAG in vars(module):
                        module._gradient_checkpointing_func = gradient_checkpointing_func


def token_ids(pipeline: Any, encoders: Iterable[str], prompts: Sequence[str]) -> dict[str, Tensor]:
    """Returns what each encoder reads of prompts, `(batch, length)` by its name: cut and padded to what it can take."""
    found = {}
    for name in encoders:
        tokenizer = getattr(pipeline, name.replace('text_encoder', 'tokenizer'))
        length = tokenizer.model_max_length
        found[name] = tokenizer(
            list(prompts), padding='max_length', max_length=length, truncation=True, return_tensors='pt'
        ).input_ids.to(torch.long)
    return found
