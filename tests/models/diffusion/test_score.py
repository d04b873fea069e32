"""Every family's denoiser with a score head: one value for each sample, whose gradient reaches all that it trains."""

from __future__ import annotations

import pytest
import torch

from align_anything.core.types import Example, Piece
from align_anything.models.diffusion.checkpoint import load_denoiser
from align_anything.models.diffusion.score import DenoiserForScore
from align_anything.policies.denoising.collator import DenoisingCollator
from align_anything.policies.denoising.noise import Noise
from tests.models.diffusion.cases import CASES, PROMPT, conditions, opened

FAMILIES = sorted(CASES)
# As docs/pipelines.md has their latents: frames, or positions of a sound, before channels.
CHANNELS_LAST = ('cogvideox', 'cogvideox_5b', 'ace_step')


def axis_of(family: str) -> int:
    return 1 if family in CHANNELS_LAST else 0


@pytest.mark.parametrize('family', FAMILIES)
def test_each_sample_has_a_value(family: str) -> None:
    tiny = opened(family)
    spec = tiny.spec
    model = DenoiserForScore(load_denoiser(spec), tiny.shape[spec.channel_dim], spec.channel_dim)
    levels = spec.levels(4, tiny.shape)[[0, 3]]
    sample = torch.randn(2, *tiny.shape, generator=torch.Generator().manual_seed(1))
    given = spec.stack(conditions(tiny, PROMPT, 'the dog'))
    predicted = spec.predict(model.denoiser, sample, levels, given, 1.0)
    values = model.read(predicted)
    by_channel = predicted.movedim(1 + axis_of(family), 1)
    wanted = torch.stack([row.flatten(1).mean(1) @ model.score.weight[0] for row in by_channel])
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


@pytest.mark.parametrize('family', sorted({*CHANNELS_LAST, 'sd3', 'wan', 'stable_audio'}))
def test_an_offset_of_noise_is_one_for_each_channel(family: str) -> None:
    spec, shape = opened(family).spec, opened(family).shape
    collate = DenoisingCollator(spec, Noise(noise_offset=1.0))
    plain = DenoisingCollator(spec, Noise())
    example = Example(Piece(torch.zeros(0, dtype=torch.long), torch.zeros(0)), [], source='row')
    with_offset, without = (own._sample_noise(example, 0, shape).noise for own in (collate, plain))
    offset = (with_offset - without).movedim(axis_of(family), 0).flatten(1)
    torch.testing.assert_close(offset, offset[:, :1].expand_as(offset))
    assert len(offset[:, 0].round(decimals=3).unique()) == len(offset)
