"""Parts of composed models: language models of every head, encoders whose processors choose the size of images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from align_anything.configs.compose import read_compose
from align_anything.core.errors import ModelError
from align_anything.models.composed.compose import compose
from align_anything.models.pretrained_model import load_spec
from align_anything.policies.token.collator import TokenCollator
from tests.models.mixed import first_turn, policy_of

Parts = Callable[[str], Path]


def of_pixels(source: Path, out: Path, side: int, **more: Any) -> Path:
    """A copy of an encoder whose processor makes images of another size, as DINOv2's does."""
    shutil.copytree(source, out)
    square = {'height': side, 'width': side}
    transformers.CLIPImageProcessor(size={'shortest_edge': side}, crop_size=square, **more).save_pretrained(out)
    return out


@pytest.mark.parametrize('name', ['dinov2', 'dinov2_with_registers'])
@pytest.mark.parametrize('select', ['patch', 'full'])
def test_images_have_the_size_that_their_processor_gives_them(
    name: str, select: str, parts: Parts, tmp_path: Path
) -> None:
    image = {'encoder': str(of_pixels(parts(name), tmp_path / 'encoder', 28)), 'select': select}
    settings = {'language_model': str(parts('llama')), 'image': image, 'video': 'frames', 'projector': 'linear'}
    folder = compose(read_compose(settings, 'test'), tmp_path / 'made')
    spec = load_spec(folder)
    example = spec.encode(first_turn(['image', 'video']))
    first = {'patch': 0, 'full': 1 + 2 * (name != 'dinov2')}[select]
    assert int((example.prompt.ids == spec.config.image_token_id).sum()) == 2 * 2 + first
    scored = policy_of(folder, spec, 'padded')(TokenCollator(spec, 'padded')([example])).values
    assert scored.isfinite().all()


@pytest.mark.parametrize(
    ('name', 'side', 'more', 'words'),
    [
        ('clip', 28, {}, 'makes images of 28 x 28 pixels, and its encoder has positions for 56 x 56'),
        ('vit', 28, {}, 'positions for 56 x 56'),
        ('videomae', 28, {}, 'positions for 56 x 56'),
        ('dinov2', 56, {'do_center_crop': False}, 'images of different sizes'),
        ('dinov2', 10, {}, 'smaller than a patch'),
    ],
)
def test_images_that_an_encoder_has_no_place_for_are_refused(
    name: str, side: int, more: dict[str, Any], words: str, parts: Parts, tmp_path: Path
) -> None:
    encoder = of_pixels(parts(name), tmp_path / 'encoder', side, **more)
    kind = 'video' if name == 'videomae' else 'image'
    with pytest.raises(ModelError, match=words):
        compose(read_compose({'language_model': str(parts('llama')), kind: str(encoder)}, 'test'), tmp_path / 'made')


def test_an_encoder_without_a_processor_is_named(parts: Parts, tmp_path: Path) -> None:
    encoder = of_pixels(parts('vit'), tmp_path / 'encoder', 56)
    (encoder / 'preprocessor_config.json').unlink()
    with pytest.raises(ModelError, match='what prepares media for .*encoder does not load'):
        compose(read_compose({'language_model': str(parts('llama')), 'image': str(encoder)}, 'test'), tmp_path / 'made')


SMALL = {
    **{'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4},
    **{'num_key_value_heads': 2, 'head_dim': 8, 'rotary_dim': 4, 'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'dff': 64},
    **{'logits_scaling': 4.0, 'pad_token_id': 0},
    **{'mamba_d_ssm': 32, 'mamba_n_heads': 4, 'mamba_d_head': 8, 'mamba_d_state': 8, 'n_positions': 64},
}


def small(model_type: str, parts: Parts, folder: Path) -> Path:
    """A language model of a type that has no builder here, of the tokenizer of `llama`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(parts('llama'))
    kind = transformers.CONFIG_MAPPING[model_type]
    known = {*kind().to_dict(), *kind.attribute_map}
    config = kind(vocab_size=len(tokenizer), **{key: value for key, value in SMALL.items() if key in known})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ('language', 'image'),
    [
        # A head with a bias, tables that a body computes for its layers, and what a LLaVA would leave out of logits.
        *(('phi', 'dinov2'), ('ctrl', 'dinov2'), ('falcon_h1', 'dinov2')),
        *(('phi', 'clip'), ('gemma2', 'clip'), ('granite', 'clip'), ('cohere', 'clip'), ('qwen3', 'clip')),
    ],
)
def test_text_alone_is_scored_as_by_the_language_model(language: str, image: str, parts: Parts, tmp_path: Path) -> None:
    source = small(language, parts, tmp_path / 'source')
    folder = compose(
        read_compose({'language_model': str(source), 'image': str(parts(image))}, 'test'), tmp_path / 'made'
    )
    assert ('"llava"' in (folder / 'config.json').read_text()) == (language == 'qwen3')
    ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = transformers.AutoModelForCausalLM.from_pretrained(source).eval()(input_ids=ids).logits
        logits = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()(input_ids=ids).logits
    assert alone.std() > 1e-3
    torch.testing.assert_close(logits[..., : alone.shape[-1]], alone)


@pytest.mark.parametrize(
    ('language', 'words'),
    [('modernbert-decoder', 'by more than a linear layer'), ('mamba', 'keeps other things than keys and values')],
)
def test_language_models_of_another_kind_are_refused(language: str, words: str, parts: Parts, tmp_path: Path) -> None:
    source = small(language, parts, tmp_path / 'source')
    with pytest.raises(ModelError, match=words):
        compose(read_compose({'language_model': str(source), 'image': str(parts('vit'))}, 'test'), tmp_path / 'made')
