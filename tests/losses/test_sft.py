from __future__ import annotations

import torch

from align_anything.losses.sft import sft_loss


def test_is_the_weighted_sum_of_negative_logprobs():
    # tokens with p = 1/2, 1/4, 1/8 and weights 1, 0, 2:  1·ln 2 + 0·ln 4 + 2·ln 8 = 7 ln 2
    logprobs = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64).log().requires_grad_()
    loss = sft_loss(logprobs, torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(loss, 7 * torch.tensor(2.0, dtype=torch.float64).log())
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.tolist() == [-1.0, 0.0, -2.0]


def test_mean_over_the_step_equals_cross_entropy():
    torch.manual_seed(0)
    logits, targets = torch.randn(9, 5, dtype=torch.float64), torch.randint(5, (9,))
    logprobs = logits.log_softmax(-1)[torch.arange(9), targets]
    torch.testing.assert_close(
        sft_loss(logprobs, torch.ones(9)) / 9, torch.nn.functional.cross_entropy(logits, targets)
    )
