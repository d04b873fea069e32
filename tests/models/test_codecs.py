"""Codecs: what the rules say is what the network does, codes are those of the class in transformers, and stay."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from align_anything.core.errors import ModelError, SampleError
from align_anything.models.codecs.base import Codec, codec_rules
from align_anything.models.codecs.mimi import MimiCodec
from align_anything.testing.codecs import CLASSES, make_codec, make_patch_codebook, make_spectrum_codebook
from tests.models.coded import SIDE, changed, picture, refused, sound, tone

# Diffusers takes seconds to import.
DIFFUSERS = pytest.param('VQModel', marks=pytest.mark.extended)
PICTURES = [*(name for name in CLASSES if name.endswith('_vqgan')), DIFFUSERS]
SOUNDS = [name for name in CLASSES if not name.endswith('_vqgan')]
BOOKS = ['patch_codebook', 'spectrum_codebook']
ALL = [*PICTURES, *SOUNDS, *BOOKS]
WEIGHTS = 'model.safetensors'

Build = Callable[[str], Path]


def media_of(codec: Codec) -> list[Any]:
    """Three media that differ in content and, where they may, in size."""
    rules = codec.rules
    if rules.kind == 'image':
        return [picture(seed=1), picture(40, 50, seed=2), picture(64, 30, seed=3)]
    return [sound(rules.rate, rules.rate // parts + more, more) for parts, more in ((4, 0), (4, 1), (3, 77))]


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Folders of codecs by type. Nothing may be changed in them."""

    def make(model_type: str, out: Path) -> None:
        if model_type == 'patch_codebook':
            make_patch_codebook(out, [picture(seed=seed) for seed in range(4)], size=(16, 24), patch=4, entries=8)
        elif model_type == 'spectrum_codebook':
            make_spectrum_codebook(out, [tone(440), sound(8000, 4000)], entries=8, books=2)
        else:
            make_codec(model_type, out)

    root = tmp_path_factory.mktemp('codecs')

    def folder(model_type: str) -> Path:
        out = root / model_type
        if not out.exists():
            make(model_type, out)
        return out

    return folder


@pytest.fixture(scope='module')
def opened(built: Build) -> Callable[[str], Codec]:
    codecs: dict[str, Codec] = {}

    def codec(model_type: str) -> Codec:
        if model_type not in codecs:
            # As a worker gets them.
            codecs[model_type] = pickle.loads(pickle.dumps(codec_rules(built(model_type)))).open()
        return codecs[model_type]

    return codec


@pytest.mark.parametrize('model_type', ALL)
def test_codes_have_the_grid_that_the_rules_say(model_type: str, opened: Callable[[str], Codec]) -> None:
    codec = opened(model_type)
    rules, media = codec.rules, media_of(codec)
    codes = codec.encode(media)
    assert [tuple(each.shape) for each in codes] == [(len(rules.books), *rules.grid(medium)) for medium in media]
    assert all(each.dtype == torch.int64 for each in codes)
    limits = torch.tensor(rules.books).view(-1, *[1] * (codes[0].ndim - 1))
    assert all(bool((each >= 0).all() and (each < limits).all()) for each in codes)
    # An untrained codec may know few sounds, but one that knows a single one proves nothing here.
    assert min(len(each.unique()) for each in codes) > 1


@pytest.mark.parametrize('model_type', ALL)
def test_codes_hang_on_nothing_beside_them(model_type: str, opened: Callable[[str], Codec]) -> None:
    codec = opened(model_type)
    media = media_of(codec)
    together = codec.encode(media)
    alone = [codec.encode([medium])[0] for medium in media]
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))
    assert torch.equal(codec.encode(media[::-1])[0], together[-1])


@pytest.mark.parametrize('model_type', [name for name in PICTURES if name != 'chameleon_vqgan'] + BOOKS[:1])
def test_pictures_come_of_codes(model_type: str, opened: Callable[[str], Codec]) -> None:
    codec = opened(model_type)
    for medium in media_of(codec):
        (codes,) = codec.encode([medium])
        made = codec.decode(codes)
        assert (made.mode, codec.rules.grid(made)) == ('RGB', tuple(codes.shape[1:]))
        other = (codes + 1) % codec.rules.books[0]
        assert np.asarray(codec.decode(other)).tobytes() != np.asarray(made).tobytes()


@pytest.mark.parametrize('model_type', [*SOUNDS, 'spectrum_codebook'])
def test_sounds_come_of_codes(model_type: str, opened: Callable[[str], Codec]) -> None:
    codec = opened(model_type)
    medium = media_of(codec)[2]
    (codes,) = codec.encode([medium])
    made = codec.decode(codes)
    assert made.rate == {'neucodec': 24000}.get(model_type, codec.rules.rate)
    assert made.samples.dtype == np.float32 and made.samples.ndim == 1 and abs(made.samples).max() <= 1
    # A frame of sound for each of codes.
    wanted = len(medium.samples) / medium.rate
    assert abs(len(made.samples) / made.rate - wanted) <= wanted / codes.shape[1] + 1e-9


@pytest.mark.parametrize('model_type', ALL)
def test_networks_are_frozen(model_type: str, opened: Callable[[str], Codec]) -> None:
    codec = opened(model_type)
    if model_type in BOOKS:
        return
    assert not any(parameter.requires_grad for parameter in codec.network.parameters())
    assert not any(module.training for module in codec.network.modules())
    assert {tensor.dtype for tensor in codec.network.parameters()} == {torch.float32}
    codes = codec.encode(media_of(codec)[:1])[0]
    assert not codes.requires_grad
    before = {name: tensor.clone() for name, tensor in codec.network.state_dict().items()}
    if codec.rules.decodes:
        codec.decode(codes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in codec.network.state_dict().items())


def own_codes(model_type: str, folder: Path, medium: Any) -> Tensor:
    """What the class in transformers makes of a medium, asked as its documentation asks it."""
    network = getattr(transformers, CLASSES[model_type][0]).from_pretrained(folder).eval()
    if model_type in ('xcodec2', 'neucodec'):
        extractor = getattr(transformers, CLASSES[model_type][0].replace('Model', 'FeatureExtractor'))()
        given = extractor(medium.samples, sampling_rate=medium.rate, return_tensors='pt')
        codes = network.encode(**given).audio_codes
        mask = network.encode(**given).audio_codes_mask
        # What lies behind the end of the mask is silence that the extractor added.
        assert 0 <= codes.shape[-1] - int(mask.sum()) <= 1
        return codes[0]
    if model_type in SOUNDS:
        samples = torch.from_numpy(medium.samples)[None, None]
        return network.encode(samples).audio_codes.view(-1, *network.encode(samples).audio_codes.shape[-2:])[0]
    pixels = torch.from_numpy(np.array(medium)).permute(2, 0, 1)[None].float()
    if model_type == 'chameleon_vqgan':
        return network.encode(pixels * 0.0078 - 1).image_tokens
    pixels = pixels / 127.5 - 1
    if model_type == 'emu3_vqgan':
        return network.encode(pixels, torch.tensor([[SIDE, SIDE]])).image_tokens[0]
    # LlamaGen and Janus compare directions, and transformers leaves that out.
    network.quantize.embedding.weight.data = torch.nn.functional.normalize(network.quantize.embedding.weight.data)
    return network.encode(pixels).image_tokens


@pytest.mark.parametrize('model_type', list(CLASSES))
@torch.no_grad()
def test_codes_are_those_of_the_class(model_type: str, built: Build, opened: Callable[[str], Codec]) -> None:
    codec = opened(model_type)
    # A whole number of frames: what fills up the last one is up to who encodes.
    medium = picture() if model_type not in SOUNDS else sound(codec.rules.rate, 12 * codec.rules.hop)
    (codes,) = codec.encode([medium])
    assert torch.equal(codes.flatten(), own_codes(model_type, built(model_type), medium).flatten())


@pytest.mark.parametrize('model_type', ['mimi', 'dac', 'encodec', 'xcodec', 'neucodec'])
@torch.no_grad()
def test_sounds_are_those_of_the_class(model_type: str, built: Build, opened: Callable[[str], Codec]) -> None:
    codec = opened(model_type)
    (codes,) = codec.encode([sound(codec.rules.rate, 12 * codec.rules.hop)])
    network = getattr(transformers, CLASSES[model_type][0]).from_pretrained(built(model_type)).eval()
    given = {'audio_codes': codes[None]}
    if model_type == 'encodec':
        given = {'audio_codes': codes[None, None], 'audio_scales': [None]}
    samples = network.decode(**given).audio_values.flatten()
    assert np.array_equal(codec.decode(codes).samples, samples.clamp(-1, 1).numpy())


@pytest.mark.parametrize('model_type', ['janus_vqgan', 'emu3_vqgan'])
@torch.no_grad()
def test_pictures_are_those_of_the_class(model_type: str, built: Build, opened: Callable[[str], Codec]) -> None:
    codec = opened(model_type)
    (codes,) = codec.encode([picture()])
    network = getattr(transformers, CLASSES[model_type][0]).from_pretrained(built(model_type)).eval()
    pixels = network.decode(codes if model_type == 'emu3_vqgan' else codes.view(1, -1))[0].permute(1, 2, 0)
    wanted = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    assert np.abs(np.asarray(codec.decode(codes)).astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.extended
@torch.no_grad()
def test_a_network_of_diffusers_is_asked_as_diffusers_asks_it(built: Build, opened: Callable[[str], Codec]) -> None:
    from diffusers import VQModel

    codec, network = opened('VQModel'), VQModel.from_pretrained(built('VQModel')).eval()
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None].float() / 127.5 - 1
    wanted = ((network(pixels).sample[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255)
    (codes,) = codec.encode([picture()])
    assert np.abs(np.asarray(codec.decode(codes)).astype(int) - wanted.byte().numpy().astype(int)).max() <= 1


@pytest.mark.parametrize('model_type', ['janus_vqgan', 'dac', 'patch_codebook'])
def test_the_fingerprint_tells_weights_and_settings(model_type: str, built: Build, tmp_path: Path) -> None:
    fingerprint = codec_rules(built(model_type)).fingerprint
    same = changed(built(model_type), tmp_path / 'same')
    shutil.copy(built(model_type) / 'config.json', same)
    assert codec_rules(same).fingerprint == fingerprint
    weights = load_file(same / WEIGHTS)
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 1e-3}, same / WEIGHTS, {'format': 'pt'})
    assert codec_rules(same).fingerprint != fingerprint
    other = changed(built(model_type), tmp_path / 'other', note='another setting')
    assert codec_rules(other).fingerprint != fingerprint


def test_a_codec_that_is_saved_again_makes_the_same_codes(opened: Callable[[str], Codec], tmp_path: Path) -> None:
    codec = opened('mimi')
    codec.network.save_pretrained(tmp_path)
    medium = sound(codec.rules.rate, 2000)
    assert torch.equal(codec_rules(tmp_path).open().encode([medium])[0], codec.encode([medium])[0])


@pytest.mark.parametrize('model_type', ['mimi', 'dac', 'encodec', 'xcodec'])
def test_the_first_books_can_be_used_alone(
    model_type: str, built: Build, opened: Callable[[str], Codec], tmp_path: Path
) -> None:
    codec = opened(model_type)
    medium = sound(codec.rules.rate, 12 * codec.rules.hop)
    one = codec_rules(changed(built(model_type), tmp_path / 'one', code_books=1))
    assert one.books == codec.rules.books[:1]
    (codes,) = one.open().encode([medium])
    assert torch.equal(codes, codec.encode([medium])[0][:1])
    assert len(one.open().decode(codes).samples) == len(codec.decode(codec.encode([medium])[0]).samples)
    for wrong in (0, 99, 'all', True):
        folder = changed(built(model_type), tmp_path / f'wrong {wrong}', code_books=wrong)
        with pytest.raises(ModelError, match='code_books .* is not a number of code books from 1 to'):
            codec_rules(folder)


def test_books_beyond_those_of_the_least_bandwidth(
    built: Build, opened: Callable[[str], Codec], tmp_path: Path
) -> None:
    rules = codec_rules(changed(built('encodec'), tmp_path / 'all', code_books=4))
    medium = sound(8000, 240)
    network = transformers.EncodecModel.from_pretrained(built('encodec')).eval()
    wanted = network.encode(torch.from_numpy(medium.samples)[None, None], bandwidth=8.0).audio_codes[0, 0]
    (codes,) = rules.open().encode([medium])
    assert torch.equal(codes, wanted)
    assert torch.equal(codes[:2], opened('encodec').encode([medium])[0])


def test_folders_that_are_no_codecs(built: Build, tmp_path: Path) -> None:
    refused(tmp_path, 'holds no codec: it has no config.json')
    (tmp_path / 'config.json').write_text('{}')
    refused(tmp_path, 'has no model_type')
    (tmp_path / 'config.json').write_text('{"model_type": "emu3_vqgam"}')
    refused(tmp_path, "unknown codec 'emu3_vqgam'. Did you mean 'emu3_vqgan'.*Known: chameleon,.*xcodec2")
    for model_type in ('patch_codebook', 'spectrum_codebook', 'framewise'):
        (tmp_path / 'config.json').write_text(json.dumps({'model_type': model_type}))
        refused(tmp_path, 'lacks the key')
    with pytest.raises(ModelError, match="no tiny codec of the type 'mimmi'. Did you mean 'mimi'"):
        make_codec('mimmi', tmp_path / 'none')


@pytest.mark.parametrize('model_type', ['janus_vqgan', 'mimi'])
def test_networks_that_are_not_whole(model_type: str, built: Build, tmp_path: Path) -> None:
    folder = changed(built(model_type), tmp_path / 'codec')
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    refused(folder, f'{folder} does not load')
    name = next(name for name in weights if name.startswith('encoder.'))
    save_file({key: value for key, value in weights.items() if key != name}, folder / WEIGHTS, {'format': 'pt'})
    refused(folder, f'lacks 1 weights of .*{name}')
    save_file({**weights, name: weights[name][:1].clone()}, folder / WEIGHTS, {'format': 'pt'})
    refused(folder, 'does not load')
    (folder / WEIGHTS).write_bytes(b'nothing')
    refused(folder, 'does not load')


def test_books_of_another_shape_than_their_configuration(built: Build, tmp_path: Path) -> None:
    refused(changed(built('patch_codebook'), tmp_path / 'patches', codebook_size=9), 'not as config.json says')
    refused(changed(built('spectrum_codebook'), tmp_path / 'spectra', num_quantizers=1), 'not as config.json says')
    refused(changed(built('patch_codebook'), tmp_path / 'size', size=[15, 24]), 'not a height and a width in patches')
    refused(changed(built('spectrum_codebook'), tmp_path / 'bins', bins=500), 'has 101 bins, not 500')


def test_settings_that_no_codec_can_have(built: Build, tmp_path: Path) -> None:
    refused(changed(built('encodec'), tmp_path / 'loud', normalize=True), 'keeps a scale beside its codes')
    refused(changed(built('encodec'), tmp_path / 'pieces', chunk_length_s=1.0, overlap=0.01), 'keeps a scale')
    refused(changed(built('emu3_vqgan'), tmp_path / 'size', size=[32]), 'size .* is not a height and a width')
    refused(changed(built('janus_vqgan'), tmp_path / 'layers', channel_multiplier='many'), 'as transformers knows it')


def test_a_network_that_makes_other_frames_than_it_should(
    built: Build, opened: Callable[[str], Codec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = opened('dac')
    monkeypatch.setattr(codec, 'codes_of', lambda samples: torch.zeros(1, 3, 5))
    with pytest.raises(ModelError, match='makes 5 frames of 16 samples, not 2'):
        codec.encode([sound(8000, 16)])


def test_media_that_no_code_can_be_made_of(built: Build, opened: Callable[[str], Codec], tmp_path: Path) -> None:
    for model_type in ('mimi', 'spectrum_codebook'):
        rules = codec_rules(built(model_type))
        with pytest.raises(SampleError, match='has 16000 samples per second, but .* encodes 8000'):
            rules.grid(sound(16000, 1000))
        with pytest.raises(SampleError, match='no samples'):
            rules.grid(sound(8000, 0))
    with pytest.raises(SampleError, match='a sound of 100 samples is too short'):
        opened('neucodec').encode([sound(16000, 100)])


def test_without_diffusers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {'_class_name': 'VQModel', 'sample_size': 32, 'num_vq_embeddings': 8, 'block_out_channels': [32, 32]}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    refused(tmp_path, r'pip install .align-anything\[diffusion\]')


def test_transformers_that_are_too_old_are_named(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MimiCodec, 'NETWORK', 'NoSuchModel')
    refused(built('mimi'), 'has no usable NoSuchModel')


def test_under_zero_3_a_codec_is_whole_all_the_same(built: Build) -> None:
    from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    kept = HfDeepSpeedConfig({'zero_optimization': {'stage': 3}, 'train_micro_batch_size_per_gpu': 1})
    # Its parts are built by their own configurations, and would be partitioned each by itself.
    codec = codec_rules(built('xcodec')).open()
    assert is_deepspeed_zero3_enabled() and kept is not None
    assert all(parameter.numel() for parameter in codec.network.parameters())
