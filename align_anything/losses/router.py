"""The load-balancing loss of mixture-of-experts models."""

from __future__ import annotations

from torch import Tensor


def router_loss(probabilities: Tensor, shares: Tensor) -> Tensor:
    """Load-balancing loss of the Switch Transformer (https://arxiv.org/abs/2101.03961, equations 4 to 6), a sum.

    It is linear in the probabilities, so that sums over parts of an optimizer step add up to that of the whole.

    Args:
        probabilities: of each expert, summed over the tokens of this part, `(experts,)`.
        shares: tokens that went to each expert by the number of tokens, over the whole step, `(experts,)`; they add up
            to the experts that each token goes to. No gradient goes through them.
    """
    return len(shares) * (shares.detach() * probabilities).sum()
