"""Every family's denoiser with a score head: one value for each sample, whose gradient reaches all that it trains."""

from __future__ import annotations

import pytest
import torch

from align_anything.models.diffusion.checkpoint import load_denoiser
from align_anything.models.diffusion.score import DenoiserForScore
from tests.models.diffusion.cases import CASES, PROMPT, conditions, opened

FAMILIES = sorted(CASES)


@pytest.mark.parametrize('family', FAMILIES)
def test_each_sample_has_a_value(family: str) -> None:
    tiny = opened(family)
    spec = tiny.spec
    model = DenoiserForScore(load_denoiser(spec), tiny.shape[0])
    levels = spec.levels(4, tiny.shape)[[0, 3]]
    sample = torch.randn(2, *tiny.shape, generator=torch.Generator().manual_seed(1))
    given = spec.stack(conditions(tiny, PROMPT, 'the dog'))
    predicted = spec.predict(model.denoiser, sample, levels, given, 1.0)
    values = model.read(predicted)
    wanted = torch.stack([row.flatten(1).mean(1) @ model.score.weight[0] for row in predicted])
    assert values.shape == (2,) and values.dtype == torch.float32
    torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-6)
    values.square().sum().backward()
    unreached = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    }
    # What is beside the mean of the prediction over its positions, such as a variance, is not read.
    expected = {name for name in unreached if any(part in name for part in CASES[family].unreached)}
    assert unreached == expected
