"""VQ networks of pictures: within the models that hold them, and behind their image processors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from align_anything.core.contents import content_of
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Video
from align_anything.models.codecs.base import codec_rules
from align_anything.models.codecs.pictures import pixels_of
from align_anything.testing.codecs import CLASSES, make_codec
from tests.models.coded import SIDE, changed, picture, refused, released_decoder

WEIGHTS = 'model.safetensors'


def saved_model(name: str, out: Path, processor: Any = None) -> Any:
    """A whole tiny model that holds a VQ network, in float32."""
    words = {'hidden_size': 32, 'intermediate_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 1}
    words |= {'num_key_value_heads': 1, 'vocab_size': 64, 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}
    vq = dict(CLASSES[f'{name}_vqgan'][1])
    vq.pop('size', None)
    torch.manual_seed(5)
    if name == 'emu3':
        tokens = {'<image>': 3, '<|extra_200|>': 4, **{f'<|visual token {code:06d}|>': 5 + code for code in range(32)}}
        config = transformers.Emu3Config(text_config=words, vq_config=vq, vocabulary_map=tokens)
    elif name == 'chameleon':
        codes = {
            'IMGIMG' + str(code).translate(str.maketrans('0123456789', 'ABCDEFGHIJ')) + 'Z': 5 + code
            for code in range(32)
        }
        config = transformers.ChameleonConfig(**words, vq_config=vq, vocabulary_map={'<image>': 3, **codes})
    else:
        tower = {'hidden_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 1, 'image_size': SIDE}
        tower |= {'patch_size': 4, 'projection_dim': 32, 'num_image_tokens': 64}
        text = {'model_type': 'llama', **words}
        vq |= {'projection_dim': 32, 'image_token_embed_dim': 32}
        config = transformers.JanusConfig(text_config=text, vision_config=tower, vq_config=vq, image_token_id=3)
    kind = {'emu3': 'Emu3', 'chameleon': 'Chameleon', 'janus': 'Janus'}[name]
    model = getattr(transformers, f'{kind}ForConditionalGeneration')(config).eval()
    model.save_pretrained(out)
    (processor or PROCESSORS[name]()).save_pretrained(out)
    return model


PROCESSORS = {
    'emu3': lambda: transformers.Emu3ImageProcessor(min_pixels=24 * 24, max_pixels=SIDE * SIDE, spatial_factor=4),
    'chameleon': lambda: transformers.ChameleonImageProcessor(
        size={'shortest_edge': SIDE}, crop_size={'height': SIDE, 'width': SIDE}
    ),
    'janus': lambda: transformers.JanusImageProcessor(size={'height': SIDE, 'width': SIDE}),
}


@pytest.mark.parametrize('name', ['emu3', 'chameleon', 'janus'])
@torch.no_grad()
def test_the_codec_within_a_whole_model(name: str, tmp_path: Path) -> None:
    model = saved_model(name, tmp_path)
    rules = codec_rules(tmp_path)
    codec = pickle.loads(pickle.dumps(rules)).open()
    for medium in (picture(40, 50), picture(64, 30, 1)):
        (codes,) = codec.encode([medium])
        assert tuple(codes.shape[1:]) == rules.grid(medium)
        given = transformers.AutoImageProcessor.from_pretrained(tmp_path)(medium, return_tensors='pt')
        if name == 'janus':
            book = model.model.vqmodel.quantize.embedding.weight
            book.copy_(torch.nn.functional.normalize(book, dim=-1))
            wanted = model.model.vqmodel.encode(given['pixel_values']).image_tokens
        elif name == 'emu3':
            ids = model.model.get_image_tokens(given['pixel_values'], given['image_sizes'])
            wanted = ids[ids != 4] - 5
        else:
            wanted = model.model.get_image_tokens(given['pixel_values']) - 5
        assert torch.equal(codes.flatten(), wanted.flatten().long())
        if name != 'chameleon':
            assert rules.grid(codec.decode(codes)) == tuple(codes.shape[1:])


@torch.no_grad()
def test_a_copy_holds_the_codec_alone_and_makes_the_same_codes(tmp_path: Path) -> None:
    saved_model('emu3', tmp_path / 'model')
    saved_model('chameleon', tmp_path / 'bare')
    weights = released_decoder(CLASSES['chameleon_vqgan'][1])
    torch.save({f'decoder.{name}': value for name, value in weights.items()}, tmp_path / 'vqgan.ckpt')
    vq = json.loads((tmp_path / 'bare' / 'config.json').read_text())['vq_config']
    changed(tmp_path / 'bare', tmp_path / 'decoding', vq_config={**vq, 'decoder': '../vqgan.ckpt'})
    (tmp_path / 'videos').mkdir()
    (tmp_path / 'videos' / 'config.json').write_text('{"model_type": "framewise", "codec": "../model", "fps": 2}')
    video = Video(np.stack([np.array(picture(40, 40, number)) for number in range(3)]), np.arange(3) / 2, 2.0)
    for name, medium in (('model', picture(40, 50)), ('decoding', picture()), ('videos', video)):
        rules = codec_rules(tmp_path / name)
        rules.copy_to(tmp_path / 'copies' / name)
        copied = codec_rules(tmp_path / 'copies' / name)
        assert copied.fingerprint == rules.fingerprint
        codec, copy = rules.open(), copied.open()
        (one,), (other,) = codec.encode([medium]), copy.encode([medium])
        assert torch.equal(one, other) and copied.decodes
        assert content_of(codec.decode(one)) == content_of(copy.decode(one))
    with safe_open(tmp_path / 'copies' / 'model' / 'model.safetensors', 'pt') as file:
        assert all(key.startswith('vqmodel.') for key in file.keys())


def test_the_codec_of_a_model_stays_while_the_model_changes(tmp_path: Path) -> None:
    before, after = tmp_path / 'before', tmp_path / 'after'
    model = saved_model('emu3', before)
    fingerprint = codec_rules(before).fingerprint
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(after)
    PROCESSORS['emu3']().save_pretrained(after)
    assert codec_rules(after).fingerprint == fingerprint
    # Codes are other ones where pictures are scaled otherwise, or where the network is another.
    transformers.Emu3ImageProcessor(min_pixels=16, max_pixels=256, spatial_factor=4).save_pretrained(after)
    assert codec_rules(after).fingerprint != fingerprint
    PROCESSORS['emu3']().save_pretrained(after)
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight.add_(1)
    model.save_pretrained(after)
    assert codec_rules(after).fingerprint != fingerprint


def test_a_model_without_its_network(tmp_path: Path) -> None:
    saved_model('janus', tmp_path)
    weights = {name: value for name, value in load_file(tmp_path / WEIGHTS).items() if 'vqmodel' not in name}
    save_file(weights, tmp_path / WEIGHTS, {'format': 'pt'})
    refused(tmp_path, 'has no weights of a vqmodel')


def test_image_processors_that_nothing_is_known_of(tmp_path: Path) -> None:
    # Pictures of any shape, none of whose sides need be a whole number of codes.
    saved_model('chameleon', tmp_path, transformers.ChameleonImageProcessor(do_center_crop=False))
    refused(tmp_path, 'scales pictures in a way that is not known here')
    (tmp_path / 'preprocessor_config.json').write_text('{"image_processor_type": "NoSuchProcessor"}')
    refused(tmp_path, 'the image processor in .* cannot be read')


def test_pictures_that_cannot_be_scaled(tmp_path: Path) -> None:
    saved_model('emu3', tmp_path)
    with pytest.raises(SampleError, match='a picture of 2010 x 10 pixels cannot be scaled'):
        codec_rules(tmp_path).grid(picture(10, 2010))
    unscaled = transformers.Emu3ImageProcessor(do_resize=False, spatial_factor=4)
    unscaled.save_pretrained(tmp_path)
    assert codec_rules(tmp_path).grid(picture(10, 21)) == (2, 5)
    with pytest.raises(SampleError, match='a picture of 21 x 3 pixels is too small'):
        codec_rules(tmp_path).grid(picture(3, 21))


@pytest.mark.parametrize('name', ['emu3', 'chameleon', 'janus'])
def test_the_size_of_pixels_is_known_before_they_are_made(name: str) -> None:
    processor = PROCESSORS[name]()
    for medium in (picture(40, 50), picture(64, 30), picture(33, 200)):
        made = processor(medium, return_tensors='pt')['pixel_values']
        assert pixels_of(processor, medium.height, medium.width) == tuple(made.shape[-2:])


def as_released(weights: dict[str, Tensor], hidden: Tensor, levels: int) -> Tensor:
    """The decoder of the VQGAN that Chameleon was released with, from the names of its weights."""
    functional = torch.nn.functional

    def conv(name: str, value: Tensor) -> Tensor:
        weight = weights[f'{name}.weight']
        return functional.conv2d(value, weight, weights[f'{name}.bias'], padding=weight.shape[-1] // 2)

    def norm(name: str, value: Tensor) -> Tensor:
        return functional.group_norm(value, 32, weights[f'{name}.weight'], weights[f'{name}.bias'], eps=1e-6)

    def block(name: str, value: Tensor) -> Tensor:
        within = conv(f'{name}.conv1', functional.silu(norm(f'{name}.norm1', value)))
        within = conv(f'{name}.conv2', functional.silu(norm(f'{name}.norm2', within)))
        return within + (conv(f'{name}.nin_shortcut', value) if f'{name}.nin_shortcut.weight' in weights else value)

    def attention(name: str, value: Tensor) -> Tensor:
        query, key, content = (conv(f'{name}.{part}', norm(f'{name}.norm', value)).flatten(2).mT for part in 'qkv')
        mixed = functional.scaled_dot_product_attention(query, key, content)
        return value + conv(f'{name}.proj_out', mixed.mT.view(value.shape))

    hidden = conv('conv_in', hidden)
    hidden = block('mid.block_2', attention('mid.attn_1', block('mid.block_1', hidden)))
    for level in reversed(range(levels)):
        for number in range(2):
            hidden = block(f'up.{level}.block.{number}', hidden)
        if level:
            hidden = functional.interpolate(hidden, scale_factor=2.0, mode='nearest')
            hidden = conv(f'up.{level}.upsample.conv', hidden)
    return conv('conv_out', functional.silu(norm('norm_out', hidden)))


@pytest.mark.parametrize('file', ['vqgan.ckpt', 'vqgan.safetensors'])
@torch.no_grad()
def test_chameleon_decodes_with_the_decoder_of_its_release(file: str, tmp_path: Path) -> None:
    bare = make_codec('chameleon_vqgan', tmp_path / 'bare')
    folder = changed(bare, tmp_path / 'codec', decoder=file)
    refused(folder, 'there is no file .*, which it names as the decoder')
    own = released_decoder(CLASSES['chameleon_vqgan'][1])
    weights = {f'decoder.{name}': value for name, value in own.items()}
    others = {'encoder.conv_in.weight': torch.zeros(1)}
    if file.endswith('.ckpt'):
        torch.save({'state_dict': {**weights, **others}}, folder / file)
    else:
        save_file({**weights, **others}, folder / file)
    rules = codec_rules(folder)
    codec = rules.open()
    (codes,) = codec.encode([picture()])
    network = transformers.ChameleonVQVAE.from_pretrained(folder)
    hidden = network.post_quant_conv(network.quantize.embedding(codes[0])[None].permute(0, 3, 1, 2))
    wanted = as_released(own, hidden, 3)
    assert torch.allclose(codec.pixels_of(codes[0]), wanted, atol=1e-5) and wanted.std() > 0.01
    assert codec.decode(codes).size == (SIDE, SIDE)
    assert rules.decodes and rules.fingerprint != codec_rules(bare).fingerprint

    save_file({name: value for name, value in weights.items() if 'conv_out' not in name}, folder / 'part.safetensors')
    refused(changed(folder, tmp_path / 'part', decoder='part.safetensors'), 'holds no decoder of this network')
    refused(changed(folder, tmp_path / 'away', decoder=f'../codec/{file}'), 'put the decoder .* into the folder')
    refused(changed(folder, tmp_path / 'large', attn_resolutions=[16]), 'attention at .16. pixels is not known')


def test_chameleon_without_a_decoder_makes_no_pictures(tmp_path: Path) -> None:
    codec = codec_rules(make_codec('chameleon_vqgan', tmp_path)).open()
    assert not codec.rules.decodes
    with pytest.raises(ModelError, match='has no decoder, so its codes are no pictures'):
        codec.decode(codec.encode([picture()])[0])
