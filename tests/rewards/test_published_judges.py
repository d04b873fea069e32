"""Rewards by models whose weights are published: each against its formula, from a file in the names of its authors."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import linear, normalize
from torchvision.transforms import v2

from align_anything.core.errors import ModelError, SettingsError
from align_anything.rewards.base import check_options, get_reward
from align_anything.testing.tiny.encoders import SIDE
from align_anything.testing.tiny.judges import build_judge
from tests.rewards.test_media_functions import CLIP, HALF, NOISE, RED, answer, given, plain

Judge = Callable[[str], str]
WIDE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 90, 3), np.uint8))
TEXTS = ['a red square', 'a blue circle ' * 20]


@pytest.fixture(scope='module')
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    folder = tmp_path_factory.mktemp('published')
    return cache(lambda name: str(build_judge(name, folder / name)))


def text_embedded(model: Any, processor: Any, text: str) -> torch.Tensor:
    inputs = processor(text=[text], return_tensors='pt', truncation=True, max_length=16)
    return normalize(model.text_projection(model.text_model(**inputs).pooler_output), dim=-1)


def picture_embedded(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return normalize(model.visual_projection(model.vision_model(pixels).pooler_output), dim=-1)


# PickScore


def test_pick_score_is_the_scaled_cosine(judge: Judge, tmp_path: Path) -> None:
    model, processor = plain('clip', judge('clip'))
    model.logit_scale.data.fill_(np.log(95.0))
    model.save_pretrained(tmp_path / 'scorer')

    @torch.no_grad()
    def score(picture: Image.Image, text: str) -> float:
        pixels = processor(images=[picture], return_tensors='pt')['pixel_values']
        return 95.0 * float((picture_embedded(model, pixels) * text_embedded(model, processor, text)).sum())

    rows = [answer(RED, NOISE, prompt=TEXTS[0]), answer(CLIP, prompt=TEXTS[1]), answer(HALF, prompt=TEXTS[1]), answer()]
    frames = [Image.fromarray(frame) for frame in CLIP.frames]
    expected = [
        (score(RED, TEXTS[0]) + score(NOISE, TEXTS[0])) / 2,
        (score(frames[0], TEXTS[1]) + score(frames[1], TEXTS[1])) / 2,
        score(HALF, TEXTS[1]),
        -3.0,
    ]
    # The published folder has weights alone.
    options = {'model': str(tmp_path / 'scorer'), 'processor': judge('clip'), 'missing': -3}
    assert given('pick_score', *rows, **options) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ModelError, match='tokenizer or processor of .*scorer does not load'):
        given('pick_score', *rows, model=options['model'])
    with pytest.raises(SettingsError, match='should be a CLIP model'):
        check_options('pick_score', get_reward('pick_score'), {'model': judge('siglip')})


# HPS


def by_open_clip(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a `CLIPModel` as open_clip has them."""
    own, found = model.state_dict(), {'logit_scale': model.logit_scale.data}
    for tower, prefix in (('vision_model', 'visual.'), ('text_model', '')):
        for number in range(model.config.vision_config.num_hidden_layers):
            layer, block = f'{tower}.encoder.layers.{number}.', f'{prefix}transformer.resblocks.{number}.'
            for kind in ('weight', 'bias'):
                joint = [own[f'{layer}self_attn.{letter}_proj.{kind}'] for letter in 'qkv']
                found[f'{block}attn.in_proj_{kind}'] = torch.cat(joint)
                for name, other in (
                    ('ln_1', 'layer_norm1'),
                    ('ln_2', 'layer_norm2'),
                    ('attn.out_proj', 'self_attn.out_proj'),
                    ('mlp.c_fc', 'mlp.fc1'),
                    ('mlp.c_proj', 'mlp.fc2'),
                ):
                    found[f'{block}{name}.{kind}'] = own[f'{layer}{other}.{kind}']
    for kind in ('weight', 'bias'):
        found[f'visual.ln_pre.{kind}'] = own[f'vision_model.pre_layrnorm.{kind}']
        found[f'visual.ln_post.{kind}'] = own[f'vision_model.post_layernorm.{kind}']
        found[f'ln_final.{kind}'] = own[f'text_model.final_layer_norm.{kind}']
    found['visual.class_embedding'] = own['vision_model.embeddings.class_embedding']
    found['visual.positional_embedding'] = own['vision_model.embeddings.position_embedding.weight']
    found['visual.conv1.weight'] = own['vision_model.embeddings.patch_embedding.weight']
    found['visual.proj'] = own['visual_projection.weight'].T.contiguous()
    found['token_embedding.weight'] = own['text_model.embeddings.token_embedding.weight']
    found['positional_embedding'] = own['text_model.embeddings.position_embedding.weight']
    found['text_projection'] = own['text_projection.weight'].T.contiguous()
    return found


@pytest.fixture(scope='module')
def published_clip(judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A CLIP model with other weights than that of the judge, and a folder with its file."""
    folder = tmp_path_factory.mktemp('open_clip')
    model, _ = plain('clip', str(build_judge('clip', folder / 'other', seed=7)))
    weights = by_open_clip(model)
    torch.save({'state_dict': weights, 'iteration': 4000}, folder / 'hps.pt')
    save_file({f'module.{name}': tensor for name, tensor in weights.items()}, folder / 'hps.safetensors')
    return model, folder


def padded(picture: Image.Image) -> torch.Tensor:
    """The picture as in HPS: its longer side brought to the model's, black around it."""
    pixels = v2.functional.to_dtype(v2.functional.pil_to_tensor(picture.convert('RGB')), torch.float32, scale=True)
    height, width = (round(length * SIDE / max(picture.size)) for length in pixels.shape[1:])
    pixels = v2.functional.resize(pixels, [height, width], v2.InterpolationMode.BICUBIC, antialias=True)
    across, down = SIDE - width, SIDE - height
    return v2.functional.pad(pixels, [across // 2, down // 2, across - across // 2, down - down // 2], fill=0)


@pytest.mark.parametrize('file', ['hps.pt', 'hps.safetensors'])
def test_hps_is_the_cosine_for_the_whole_picture(file: str, judge: Judge, published_clip: tuple[Any, Path]) -> None:
    model, folder = published_clip
    _, processor = plain('clip', judge('clip'))
    statistics = processor.image_processor.image_mean, processor.image_processor.image_std

    @torch.no_grad()
    def score(picture: Image.Image, text: str) -> float:
        pixels = v2.functional.normalize(padded(picture), *statistics)[None]
        return float((picture_embedded(model, pixels) * text_embedded(model, processor, text)).sum())

    tall = WIDE.transpose(Image.Transpose.ROTATE_90)
    rows = [answer(WIDE, RED, prompt=TEXTS[0]), answer(tall, prompt=TEXTS[1]), answer(HALF, prompt=TEXTS[0])]
    expected = [
        (score(WIDE, TEXTS[0]) + score(RED, TEXTS[0])) / 2,
        score(tall, TEXTS[1]),
        score(HALF, TEXTS[0]),
    ]
    options = {'model': judge('clip'), 'weights': str(folder / file)}
    for batch_size in (1, 32):
        found = given('hps', *rows, batch_size=batch_size, **options)
        assert found == pytest.approx(expected, abs=1e-5)
    # Those of a checkpoint of transformers, without a file.
    assert given('hps', *rows, model=str(folder / 'other')) == pytest.approx(expected, abs=1e-5)
    assert given('hps', *rows, model=judge('clip')) != pytest.approx(expected, abs=1e-3)
    assert given('hps', answer(Image.new('RGB', (1, 900))), model=judge('clip'))[0] is not None


def test_weights_of_another_model_are_refused(judge: Judge, published_clip: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = published_clip

    def problem(name: str) -> str:
        with pytest.raises(SettingsError) as refused:
            check_options('hps', get_reward('hps'), {'model': judge('clip'), 'weights': str(tmp_path / name)})
        return str(refused.value)

    assert 'is no file' in problem('gone.pt')
    (tmp_path / 'broken.pt').write_bytes(b'no weights')
    assert 'is damaged, or holds something else than weights' in problem('broken.pt')
    (tmp_path / 'cut.pt').write_bytes((folder / 'hps.pt').read_bytes()[:4000])
    assert 'is damaged' in problem('cut.pt')
    torch.save([1, 2], tmp_path / 'list.pt')
    assert 'holds no weights by name' in problem('list.pt')
    save_file({'a': torch.ones(1)}, tmp_path / 'other.safetensors')
    assert 'should hold a CLIP model in the names of open_clip' in problem('other.safetensors')
    whole = torch.load(folder / 'hps.pt')['state_dict']
    torch.save({name: whole[name] for name in whole if 'ln_post' not in name}, tmp_path / 'lacking.pt')
    with pytest.raises(ModelError, match=r'lacking.pt lacks weights of CLIPModel.*post_layernorm'):
        given('hps', answer(RED), model=judge('clip'), weights=str(tmp_path / 'lacking.pt'))
    torch.save({**whole, 'visual.proj': torch.ones(32, 16)}, tmp_path / 'small.pt')
    with pytest.raises(
        ModelError, match=r'small.pt does not fit the configuration .* is \(16, 32\), and not \(32, 32\)'
    ):
        given('hps', answer(RED), model=judge('clip'), weights=str(tmp_path / 'small.pt'))
    torch.save({**whole, 'score_predictor.weight': torch.ones(1)}, tmp_path / 'more.pt')
    with pytest.raises(ModelError, match=r'more.pt holds weights that CLIPModel has none of.*score_predictor'):
        given('hps', answer(RED), model=judge('clip'), weights=str(tmp_path / 'more.pt'))


# ImageReward

PICTURE, WIDTH = 32, 128
RENAMES = (
    ('embeddings.class_embedding', 'cls_token'),
    ('embeddings.position_embedding', 'pos_embed'),
    ('embeddings.patch_embedding', 'patch_embed.proj'),
    ('encoder.layers', 'blocks'),
    ('post_layernorm', 'norm'),
    ('layer_norm', 'norm'),
    ('self_attn.qkv', 'attn.qkv'),
    ('self_attn.projection', 'attn.proj'),
)


@pytest.fixture(scope='module')
def image_reward(judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, list[torch.Tensor], Path]:
    """The towers of a tiny ImageReward, its layers, and its file."""
    torch.manual_seed(3)
    tower = {'hidden_size': WIDTH, 'intermediate_size': 96, 'num_hidden_layers': 3, 'num_attention_heads': 2}
    vision = transformers.BlipVisionModel(
        transformers.BlipVisionConfig(
            **tower, image_size=PICTURE, patch_size=8, layer_norm_eps=1e-6, initializer_range=0.2
        )
    )
    text = transformers.BlipTextModel(
        transformers.BlipTextConfig(
            vocab_size=310, hidden_size=64, encoder_hidden_size=WIDTH, intermediate_size=80, num_hidden_layers=2,
            num_attention_heads=1, max_position_embeddings=40, initializer_range=0.2,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    sizes, numbers = (64, 32, 16, 8, 4, 1), (0, 2, 4, 6, 7)
    layers = [torch.randn(shape) for one, two in zip(sizes, sizes[1:], strict=False) for shape in ((two, one), (two,))]
    tensors = {'blip.text_proj.weight': torch.ones(2, 2), 'blip.text_encoder.embeddings.position_ids': torch.arange(40)}
    for name, tensor in vision.state_dict().items():
        for ours, theirs in RENAMES:
            name = name.replace(ours, theirs)
        tensors[f'blip.visual_encoder.{name}'] = tensor
    tensors |= {f'blip.text_encoder.{name}': tensor for name, tensor in text.state_dict().items()}
    for number, weight, bias in zip(numbers, layers[::2], layers[1::2], strict=True):
        tensors |= {f'mlp.layers.{number}.weight': weight, f'mlp.layers.{number}.bias': bias}
    path = tmp_path_factory.mktemp('image_reward') / 'ImageReward.pt'
    torch.save(tensors, path)
    return vision.eval(), text.eval(), layers, path


def test_image_reward_is_the_standardised_score_of_the_first_token(
    judge: Judge, image_reward: tuple[Any, Any, list[torch.Tensor], Path]
) -> None:
    vision, text, layers, path = image_reward
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge('clip'))
    prepare = v2.Compose(
        [
            v2.Resize(PICTURE, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(PICTURE),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )

    @torch.no_grad()
    def score(picture: Image.Image, prompt: str) -> float:
        read = tokenizer(prompt, padding='max_length', truncation=True, max_length=35, return_tensors='pt')
        seen = vision(prepare(picture)[None]).last_hidden_state
        states = text(
            read['input_ids'],
            attention_mask=read['attention_mask'],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long),
        ).last_hidden_state[:, 0]
        for weight, bias in zip(layers[::2], layers[1::2], strict=True):
            states = linear(states, weight, bias)
        return (float(states) - 0.16717362830052426) / 1.0333394966054072

    rows = [answer(WIDE, RED, prompt=TEXTS[0]), answer(NOISE, prompt=TEXTS[1]), answer(), answer(HALF, prompt='?')]
    expected = [
        (score(WIDE, TEXTS[0]) + score(RED, TEXTS[0])) / 2,
        score(NOISE, TEXTS[1]),
        -9.0,
        score(HALF, '?'),
    ]
    assert len({round(value, 3) for value in expected}) == 4
    options = {'weights': str(path), 'tokenizer': judge('clip'), 'missing': -9}
    for batch_size in (1, 32):
        assert given('image_reward', *rows, batch_size=batch_size, **options) == pytest.approx(expected, rel=1e-4)
    row = answer(HALF, prompt='!', meta={'caption': '?'})
    assert given('image_reward', row, column='caption', **options) == pytest.approx([expected[3]], rel=1e-4)


def test_what_is_no_image_reward_is_refused(
    judge: Judge, image_reward: tuple[Any, Any, list[torch.Tensor], Path], tmp_path: Path
) -> None:
    whole = torch.load(image_reward[-1])

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        torch.save(tensors, tmp_path / 'weights.pt')
        options = {'weights': str(tmp_path / 'weights.pt'), 'tokenizer': judge('clip')}
        with pytest.raises(SettingsError, match=f"option 'weights' of reward 'image_reward'.*{message}"):
            check_options('image_reward', get_reward('image_reward'), options)

    refused({name: whole[name] for name in whole if not name.startswith('mlp')}, 'should hold ImageReward')
    refused({name: whole[name] for name in whole if name != 'mlp.layers.0.bias'}, 'weight and bias of each layer')
    few = {**whole, 'blip.text_encoder.embeddings.word_embeddings.weight': torch.zeros(20, 64)}
    torch.save(few, tmp_path / 'few.pt')
    with pytest.raises(ModelError, match='tokens, and .*few.pt reads 20: name the tokenizer'):
        given('image_reward', answer(RED), weights=str(tmp_path / 'few.pt'), tokenizer=judge('clip'))
    torch.save({name: whole[name] for name in whole if not re.search(r'blocks\.1\.norm1', name)}, tmp_path / 'gap.pt')
    with pytest.raises(ModelError, match='gap.pt lacks weights of BlipVisionModel'):
        given('image_reward', answer(RED), weights=str(tmp_path / 'gap.pt'), tokenizer=judge('clip'))
    with pytest.raises(ModelError, match='the tokenizer of .*gone does not load'):
        given('image_reward', answer(RED), weights=str(image_reward[-1]), tokenizer=str(tmp_path / 'gone'))
