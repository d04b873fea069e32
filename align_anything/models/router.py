"""Routers of mixture-of-experts models: where they are, what they say, and how much their balance counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align_anything.core.errors import SettingsError
from align_anything.models.adapter import bare_layer

EXPERTS_PER_TOKEN = ('num_experts_per_tok', 'moe_topk', 'moe_k', 'moe_top_k')


def router_coefficient(model: nn.Module, asked: float | None) -> float:
    """Returns the weight of the router loss in the objective: `asked`, else the checkpoint's own; 0 is off.

    Raises SettingsError when a model without a router loss is asked for one.
    """
    own = model.config.get_text_config(decoder=True).to_dict().get('router_aux_loss_coef')
    if own is not None and Routers(model).found:
        return float(own if asked is None else asked)
    if asked:
        raise SettingsError(
            [
                f"train_cfgs.router_aux_loss_coef: models of type '{model.config.model_type}' have no router loss; "
                'leave the setting out.'
            ]
        )
    return 0.0


class Routers:
    """The routers of the language model of `model`, as transformers declares them for its `router_logits`.

    A router that has an adapter is the whole of both: inside are layers of the same class that route nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        known = model.config.get_text_config(decoder=True).to_dict()
        self.experts_per_token = next((int(known[name]) for name in EXPERTS_PER_TOKEN if known.get(name)), 1)
        self.found: list[tuple[nn.Module, int]] = []
        seen: set[int] = set()
        for owner in (module for module in model.modules() if isinstance(module, PreTrainedModel)):
            declared = (owner._can_record_outputs or {}).get('router_logits', [])
            for recorder in declared if isinstance(declared, list) else [declared]:
                for name, module in owner.named_modules():
                    fits, plain = recorder.layer_name is None or recorder.layer_name in name, bare_layer(module)
                    if isinstance(plain, recorder.target_class) and fits and id(module) not in seen:
                        seen |= {id(part) for part in ([module] if plain is module else module.modules())}
                        self.found.append((module, recorder.index))

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Collects the logits of each router that computes meanwhile, `(tokens, experts)`."""
        logits: list[Tensor] = []

        def take(index: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
            said = output[index] if isinstance(output, tuple) else output
            logits.append(said.flatten(0, -2))

        handles = [module.register_forward_hook(partial(take, index)) for module, index in self.found]
        try:
            yield logits
        finally:
            # Gone before the backward pass, which computes layers anew under gradient checkpointing.
            for handle in handles:
                handle.remove()

    def sums(self, logits: list[Tensor], counted: Tensor) -> Tensor:
        """Returns, summed over the `counted` tokens `(tokens,)` and averaged over the routers, `(2, experts)`.

        Row 0 are the probabilities of the experts, row 1 how many tokens went to each.
        """
        wide = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
        totals = []
        for said in logits:
            probabilities = torch.softmax(said[counted].to(wide), dim=-1)
            chosen = torch.topk(probabilities, self.experts_per_token, dim=-1).indices
            tokens = torch.bincount(chosen.flatten(), minlength=said.shape[-1]).to(wide)
            totals.append(torch.stack([probabilities.sum(0), tokens]))
        return torch.stack(totals).mean(0)
