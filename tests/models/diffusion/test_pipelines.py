"""Every family says and does what its own pipeline does."""

from __future__ import annotations

import functools
import inspect
import pickle
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from tests.models.diffusion.cases import (
    CASES,
    EDITING,
    PROMPT,
    STEPS,
    conditions,
    noise_of,
    opened,
    own_sample,
    solved,
    values,
)

FAMILIES = sorted(CASES)


def first_call(denoiser: nn.Module, run: Any) -> tuple[dict[str, Any], Any]:
    """The arguments of the denoiser's first call by name, and what it returned."""
    calls: list[tuple[dict[str, Any], Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((inspect.signature(module.forward).bind(*args, **kwargs).arguments, output))

    handle = denoiser.register_forward_hook(note, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return calls[0]


def flat(value: Any) -> list[Tensor]:
    """All tensors in nested lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for name in sorted(value) for tensor in flat(value[name])]
    if isinstance(value, (list, tuple)):
        return [tensor for entry in value for tensor in flat(entry)]
    return []


@pytest.mark.parametrize('family', FAMILIES)
def test_the_denoiser_is_called_as_the_pipeline_calls_it(family: str) -> None:
    tiny = opened(family)
    own, output = first_call(getattr(tiny.whole, tiny.spec.denoiser), lambda: own_sample(family, tiny.whole))
    given = tiny.spec.stack(conditions(tiny, PROMPT))
    level = tiny.spec.levels(STEPS, tiny.shape)[:1]
    ours, same = first_call(
        tiny.denoiser,
        lambda: tiny.spec.predict(tiny.denoiser, noise_of(tiny), level, given, CASES[family].guidance),
    )
    # The scheduler of Stable Audio multiplies noise and divides it again, and pixels are divided in another order.
    rounds = family == 'stable_audio' or family in EDITING
    equal = functools.partial(torch.allclose, rtol=1e-5, atol=2e-6) if rounds else torch.equal
    names = {name for name, value in own.items() if flat(value)}
    assert names == {name for name, value in ours.items() if flat(value)}
    for name in names:
        for theirs, made in zip(flat(own[name]), flat(ours[name]), strict=True):
            assert equal(theirs.float().expand(made.shape), made.float()), name
    assert all(equal(theirs, made) for theirs, made in zip(flat(output), flat(same), strict=True))


@pytest.mark.parametrize('family', FAMILIES)
def test_our_own_loop_makes_the_pipelines_own_picture(family: str) -> None:
    tiny = opened(family)
    expected = own_sample(family, tiny.whole)
    made = tiny.spec.decode_latents(tiny.frozen, solved(family, tiny))
    assert numpy.abs(values(expected) - values(made)).max() <= 1
    assert values(expected).std() > 0


@pytest.mark.parametrize('family', FAMILIES)
def test_latents_are_scaled_as_they_are_unscaled(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = opened(family)
    latents, seen = torch.randn(2, *tiny.shape), []
    decode = tiny.frozen.vae.decode

    def note(given: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(given)
        return decode(given, *args, **kwargs)

    monkeypatch.setattr(tiny.frozen.vae, 'decode', note)
    media = tiny.spec.decode_latents(tiny.frozen, latents)
    size = tiny.spec.default_size()
    encoded = SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: seen[0]), latent=seen[0])
    monkeypatch.setattr(tiny.frozen.vae, 'encode', lambda fitted: encoded)
    again = tiny.spec.encode_media(tiny.frozen, torch.stack([tiny.spec.fitted(one, size) for one in media]))
    assert torch.allclose(again, latents, atol=1e-5)
    # Autoencoders of sounds have latents as the denoiser has them.
    assert tiny.spec.emits == {'audio'} or not torch.allclose(again.std(), seen[0].std(), rtol=1e-3)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_medium_becomes_latents_of_the_shape_that_is_told(family: str) -> None:
    tiny = opened(family)
    medium = tiny.spec.decode_latents(tiny.frozen, torch.randn(1, *tiny.shape))[0]
    size = tiny.spec.size_of(medium)
    latents = tiny.spec.encode_media(tiny.frozen, tiny.spec.fitted(medium, size)[None])
    assert latents.shape == (1, *tiny.spec.latent_shape(size)) and latents.dtype == torch.float32


@pytest.mark.parametrize('family', FAMILIES)
def test_prompts_of_a_batch_do_not_touch_each_other(family: str) -> None:
    tiny = opened(family)
    spec, prompts = tiny.spec, [PROMPT, 'the quick brown fox jumps over the lazy dog']
    encoded = conditions(tiny, *prompts)
    sample = torch.randn(2, *tiny.shape)
    level = spec.levels(STEPS, tiny.shape)[1:2]
    with torch.no_grad():
        both = spec.predict(tiny.denoiser, sample, level.expand(2), spec.stack(encoded), 1.0)
        for row in range(2):
            alone = spec.stack(conditions(tiny, prompts[row]))
            one = spec.predict(tiny.denoiser, sample[row : row + 1], level, alone, 1.0)
            assert torch.allclose(both[row], one[0], atol=2e-5)
    assert both.shape == sample.shape and both.dtype == torch.float32


@pytest.mark.parametrize('family', FAMILIES)
def test_what_is_opened_is_frozen_and_has_no_denoiser(family: str) -> None:
    tiny = opened(family)
    networks = [part for part in tiny.frozen.components.values() if isinstance(part, nn.Module)]
    assert networks and not any(network.training for network in networks)
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())
    assert not isinstance(getattr(tiny.frozen, tiny.spec.denoiser), nn.Module)


@pytest.mark.parametrize('family', FAMILIES)
def test_decoding_needs_no_text_encoder(family: str) -> None:
    tiny = opened(family)
    light = tiny.spec.open(torch.device('cpu'), decodes_only=True)
    left = {name for name, part in light.components.items() if isinstance(part, nn.Module)}
    assert tiny.spec.text_encoders and left and left.isdisjoint(tiny.spec.text_encoders)
    made = [tiny.spec.decode_latents(pipeline, noise_of(tiny)) for pipeline in (tiny.frozen, light)]
    assert numpy.array_equal(*map(values, made))


@pytest.mark.parametrize('family', FAMILIES)
def test_rules_can_be_pickled(family: str) -> None:
    spec = opened(family).spec
    again = pickle.loads(pickle.dumps(spec))
    assert again.default_size() == spec.default_size() and again.process == spec.process
