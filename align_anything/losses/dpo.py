"""Direct preference optimisation and the losses that share its form.

All take sums of log-probabilities over each response, policy minus reference where there is one, and return one loss
for each pair. `delta` below is the difference of the two log-ratios, `chosen - rejected`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


@dataclass(frozen=True)
class Ratios:
    """What the losses read of a batch of pairs, each `(pairs,)`.

    Attributes:
        chosen, rejected: log-probability of the response under the policy less that under the reference.
        chosen_length, rejected_length: number of trained tokens of the response, at least 1.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def delta(self) -> Tensor:
        return self.chosen - self.rejected

    def reversed(self, pairs: Tensor) -> Ratios:
        """Those of `pairs`, `(pairs,)` bool, with the other response as the chosen one."""
        turned = (self.rejected, self.chosen, self.rejected_length, self.chosen_length)
        return Ratios(*(values[pairs] for values in turned))

    def per_token(self) -> Ratios:
        """The ratios divided by the lengths of their responses."""
        return Ratios(
            self.chosen / self.chosen_length,
            self.rejected / self.rejected_length,
            self.chosen_length,
            self.rejected_length,
        )


@dataclass(frozen=True)
class Constants:
    """The constants of the losses: `beta`, `label_smoothing` (the chance that a label is wrong), DiscoPOP's `tau`."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    tau: float = 0.05


def sigmoid(ratios: Ratios, constants: Constants) -> Tensor:
    """DPO: `-log σ(β delta)` (Rafailov et al., 2023, arXiv:2305.18290, eq. 7).

    With label smoothing ε it is conservative DPO (Mitchell, 2023): `-(1-ε) log σ(β delta) - ε log σ(-β delta)`.
    """
    logits, smoothing = constants.beta * ratios.delta, constants.label_smoothing
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def sigmoid_norm(ratios: Ratios, constants: Constants) -> Tensor:
    """DPO on log-ratios per token, as in Tülu 3 (Lambert et al., 2024, arXiv:2411.15124, section 5.1.2)."""
    return sigmoid(ratios.per_token(), constants)


def ipo(ratios: Ratios, constants: Constants) -> Tensor:
    """IPO: `(delta - 1 / 2β)²` (Azar et al., 2023, arXiv:2310.12036, eq. 17), on log-ratios per token.

    The paper sums over tokens; its authors' results, and TRL, divide by the length.
    """
    return (ratios.per_token().delta - 1 / (2 * constants.beta)).square()


def hinge(ratios: Ratios, constants: Constants) -> Tensor:
    """SLiC's hinge on DPO's margin: `max(0, 1 - β delta)` (Zhao et al., 2023, arXiv:2305.10425, eq. 1, normalised)."""
    return (1 - constants.beta * ratios.delta).relu()


def robust(ratios: Ratios, constants: Constants) -> Tensor:
    """Robust DPO: unbiased when a share ε of labels is flipped (Chowdhury et al., 2024, arXiv:2403.00409, eq. 12)."""
    logits, smoothing = constants.beta * ratios.delta, constants.label_smoothing
    return (-(1 - smoothing) * logsigmoid(logits) + smoothing * logsigmoid(-logits)) / (1 - 2 * smoothing)


def bco_pair(ratios: Ratios, constants: Constants) -> Tensor:
    """Binary classifier optimisation on pairs: `-log σ(β chosen) - log σ(-β rejected)` (Jung et al., 2024,
    arXiv:2404.04656, eq. 11) without the running shift δ, as in TRL."""
    return -logsigmoid(constants.beta * ratios.chosen) - logsigmoid(-constants.beta * ratios.rejected)


def sppo_hard(ratios: Ratios, constants: Constants) -> Tensor:
    """SPPO with certain wins: `(chosen - 1/2β)² + (rejected + 1/2β)²` (Wu et al., 2024, arXiv:2405.00675, eq. 4.7)."""
    target = 0.5 / constants.beta
    return (ratios.chosen - target).square() + (ratios.rejected + target).square()


def nca_pair(ratios: Ratios, constants: Constants) -> Tensor:
    """NCA with two responses: raises the chosen one and keeps both near the reference (Chen et al., 2024,
    arXiv:2402.05369, table 2)."""
    chosen, rejected = constants.beta * ratios.chosen, constants.beta * ratios.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def exo_pair(ratios: Ratios, constants: Constants) -> Tensor:
    """EXO with two responses: `KL(p_θ ‖ p_r)` where `p_r = (1-ε, ε)` (Ji et al., 2024, arXiv:2402.00856, eq. 16).

    ε is the label smoothing, which must be above zero (the paper uses 1e-3).
    """
    logits = constants.beta * ratios.delta
    smoothing = logits.new_tensor(constants.label_smoothing)
    better = torch.sigmoid(logits) * (logsigmoid(logits) - torch.log1p(-smoothing))
    worse = torch.sigmoid(-logits) * (logsigmoid(-logits) - torch.log(smoothing))
    return better + worse


def apo_zero(ratios: Ratios, constants: Constants) -> Tensor:
    """APO-zero: raises chosen, lowers rejected (D'Oosterlinck et al., 2024, arXiv:2408.06266, eq. 7)."""
    return 1 - torch.sigmoid(constants.beta * ratios.chosen) + torch.sigmoid(constants.beta * ratios.rejected)


def apo_down(ratios: Ratios, constants: Constants) -> Tensor:
    """APO-down: lowers chosen and lowers rejected more (D'Oosterlinck et al., 2024, arXiv:2408.06266, eq. 8)."""
    return torch.sigmoid(constants.beta * ratios.chosen) + 1 - torch.sigmoid(constants.beta * ratios.delta)


def discopop(ratios: Ratios, constants: Constants) -> Tensor:
    """DiscoPOP: logistic and exponential loss, blended by the margin (Lu et al., 2024, arXiv:2406.08414, eq. 5).

    It is not monotone: around a margin of zero it pushes the pair together.
    """
    logits = constants.beta * ratios.delta
    blend = torch.sigmoid(logits / constants.tau)
    return softplus(-logits) * (1 - blend) + torch.exp(-logits) * blend


PairLoss = Callable[[Ratios, Constants], Tensor]
DPO_LOSSES: Mapping[str, PairLoss] = MappingProxyType(
    {
        loss.__name__: loss
        for loss in (
            sigmoid,
            sigmoid_norm,
            ipo,
            hinge,
            robust,
            bco_pair,
            sppo_hard,
            nca_pair,
            exo_pair,
            apo_zero,
            apo_down,
            discopop,
        )
    }
)
"""Loss by the name that `loss_type` takes, the names being TRL's.

TRL's `aot` sorts a batch, so its gradient depends on how a step is split into micro-batches; it is left out for that.
"""
