"""Media are brought to a size that the family has: covered, cropped, in the nearest bucket, or refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Audio, Conversation, Video
from align_anything.models.diffusion.checkpoint import load_spec
from align_anything.models.diffusion.fitting import fit_image
from align_anything.models.diffusion.spec import Sizing
from tests.models.diffusion.cases import folder_of


def striped(height: int, width: int) -> Image.Image:
    """A picture that is red at the left and right ends, green in the middle."""
    pixels = numpy.zeros((height, width, 3), numpy.uint8)
    pixels[:, :, 0], edge = 255, width // 4
    pixels[:, edge:-edge] = (0, 255, 0)
    return Image.fromarray(pixels)


def video(frames: int, height: int = 24, width: int = 48) -> Video:
    shown = numpy.arange(frames, dtype=numpy.uint8)[:, None, None, None].repeat(height, 1).repeat(width, 2).repeat(3, 3)
    return Video(shown, numpy.arange(frames) / 8, 8.0)


def answered(kind: str, *media: object) -> list[Conversation]:
    prompt = {'role': 'user', 'content': [{'type': 'text', 'text': 'a red square'}]}
    return [[prompt, {'role': 'assistant', 'content': [{'type': kind, kind: medium}]}] for medium in media]


def test_a_picture_is_covered_and_cropped_in_the_middle() -> None:
    fitted = fit_image(striped(16, 64), 16, 32)
    assert fitted.shape == (3, 16, 32) and fitted.dtype == torch.float32
    assert torch.allclose(fitted[1, :, 4:-4], torch.ones(1)) and torch.allclose(fitted[0, :, 4:-4], -torch.ones(1))
    assert fit_image(Image.new('L', (3, 5), 255), 8, 8).min() == 1.0


def test_answers_to_one_prompt_have_the_size_of_the_first() -> None:
    spec = load_spec(folder_of('sd3'), Sizing(resolution=(64, 64), buckets=True), draws=2)
    upright, lying = striped(80, 40), striped(40, 80)
    example = spec.encode_group(answered('image', upright, lying))
    height, width = spec.size_of(upright)
    assert height > width and spec.size_of(lying) == (width, height)
    assert [piece.media['latents'].shape for piece in example.responses] == [spec.latent_shape((height, width))] * 2
    assert example.responses[0].weights.tolist() == [0.5, 0.5]


def test_a_video_gives_its_first_frames_and_one_that_is_too_short_is_refused() -> None:
    spec = load_spec(folder_of('wan'), Sizing(resolution=(32, 32), num_frames=5))
    fitted = spec.fitted(video(7), (5, 32, 32))
    assert fitted.shape == (3, 5, 32, 32)
    assert torch.equal(((fitted[0, :, 0, 0] + 1) * 127.5).round(), torch.arange(5.0))
    with pytest.raises(SampleError, match='has 3 frames, and 5 are trained'):
        spec.encode_group(answered('video', video(3)))
    bucketed = load_spec(folder_of('wan'), Sizing(resolution=(64, 64), num_frames=9, buckets=True))
    frames, height, width = bucketed.size_of(video(8))
    assert frames == 5 and width > height
    assert bucketed.latent_shape((frames, height, width)) == (16, 2, height // 8, width // 8)


def test_numbers_of_frames_that_no_latent_covers_are_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match='one more than a multiple of 4. The nearest is 9'):
        load_spec(folder_of('wan'), Sizing(resolution=(32, 32), num_frames=8))


@pytest.mark.parametrize('family', ['sd3', 'z_image', 'wan'])
def test_sides_that_the_denoiser_has_no_positions_for_are_refused_and_so_are_those_of_buckets(family: str) -> None:
    spec = load_spec(folder_of(family), Sizing(resolution=(64, 64), num_frames=5 if family == 'wan' else None))
    most, frames = spec.most_positions, 5 if family == 'wan' else None
    side = most * spec.size_unit
    sizing = Sizing(resolution=(side, side), num_frames=frames)
    assert load_spec(folder_of(family), sizing).default_size()[-2:] == (side, side)
    with pytest.raises(ModelError, match=f'positions for sides of at most {side} pixels'):
        load_spec(folder_of(family), replace(sizing, resolution=(64, side + spec.size_unit)))
    with pytest.raises(ModelError, match='aspect_buckets: of a resolution of .* a bucket is'):
        load_spec(folder_of(family), replace(sizing, buckets=True))


def test_a_denoiser_that_learned_its_positions_takes_its_own_size_alone() -> None:
    spec = load_spec(folder_of('cogvideox'), Sizing(num_frames=5))
    configs = {**spec.configs, 'transformer': spec.configs['transformer'] | {'use_learned_positional_embeddings': True}}
    height, width = spec.default_size()[1:]
    own = Sizing(num_frames=5, resolution=(height, width))
    assert type(spec)(spec.folder, spec.index, configs, sizing=own).default_size() == (5, height, width)
    for other in (replace(own, buckets=True), replace(own, resolution=(height, width + spec.size_unit))):
        with pytest.raises(ModelError, match=f'for {height} × {width} pixels alone'):
            type(spec)(spec.folder, spec.index, configs, sizing=other)


def test_a_clip_is_cut_or_ends_in_silence_and_another_rate_is_refused() -> None:
    spec = load_spec(folder_of('stable_audio'), Sizing(seconds=0.5))
    rate = spec.audio_rate
    assert spec.default_size() == (rate // 2,)
    long, short = Audio(numpy.ones(rate, numpy.float32), rate), Audio(numpy.ones(10, numpy.float32), rate)
    assert spec.fitted(long, spec.default_size()).shape == (2, rate // 2)
    fitted = spec.fitted(short, spec.default_size())
    assert fitted[:, :10].eq(1).all() and fitted[:, 10:].eq(0).all()
    with pytest.raises(SampleError, match='resample it'):
        spec.encode_group(answered('audio', Audio(long.samples, 2 * rate)))
    with pytest.raises(ModelError, match='at most 1.28'):
        load_spec(folder_of('stable_audio'), Sizing(seconds=2.0))


def test_a_conversation_that_is_no_prompt_and_medium_is_refused() -> None:
    spec = load_spec(folder_of('sd3'), Sizing(resolution=(32, 32)))
    [conversation] = answered('image', striped(32, 32))
    with pytest.raises(SampleError, match='one image and nothing else'):
        spec.encode(answered('video', video(5))[0])
    with pytest.raises(SampleError, match='one user turn'):
        spec.encode([{'role': 'system', 'content': []}, *conversation])
    with pytest.raises(SampleError, match='read text alone'):
        spec.encode([{'role': 'user', 'content': conversation[1]['content']}, conversation[1]])


def test_shifts_grow_with_the_picture_where_the_family_has_it_so() -> None:
    flux, sd3 = (load_spec(folder_of(name), Sizing(resolution=(32, 32))) for name in ('flux', 'sd3'))
    small, large = (16, 32, 32), (16, 128, 128)
    assert flux.shift(small) == pytest.approx(math.exp(0.5)) and flux.shift(large) == pytest.approx(math.exp(1.15))
    assert sd3.shift(small) == sd3.shift(large) == 3.0
    assert load_spec(folder_of('wan'), Sizing(resolution=(32, 32), num_frames=5)).shift((16, 2, 4, 4)) == 3.0
    assert torch.all(flux.levels(4, large)[:-1] >= flux.levels(4, small)[:-1])
