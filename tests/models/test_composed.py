"""Composed models of every encoder, projector and kind of language model are ordinary checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from align_anything.configs.compose import read_compose
from align_anything.core.errors import ModelError, SettingsError
from align_anything.models import composed
from align_anything.models.any_model import AnyModel
from align_anything.models.composed.compose import compose
from align_anything.models.composed.configuration_composed import CODE
from align_anything.models.export import export_model
from align_anything.models.pretrained_model import load_spec
from align_anything.policies.token.collator import TokenCollator
from align_anything.testing.tiny import build
from align_anything.testing.tiny.encoders import ENCODERS, SHAPE
from tests.harness.once import once
from tests.harness.pairwise import in_tiers, pairwise
from tests.models.mixed import first_turn, policy_of, two_turns
from tests.models.samples import assistant, user

IMAGE = ('clip', 'siglip', 'vit', 'dinov2', 'dinov2_with_registers')
AUDIO = ('wav2vec2', 'wavlm', 'hubert', 'whisper', 'clap')
VIDEO = ('frames', 'videomae', 'dinov2', None)
LANGUAGE = ('llama', 'qwen3', 'gemma2', 'opt', 'granite')
PROJECTORS = ('linear', 'mlp', 'transformer', 'expand')
# Each encoder, projector and language model stands in one of these.
FIRST = [
    ('llama', 'clip', 'wav2vec2', 'frames', 'mlp'),
    ('qwen3', 'siglip', 'wavlm', None, 'linear'),
    ('gemma2', 'vit', 'whisper', 'videomae', 'transformer'),
    ('opt', 'dinov2', 'hubert', 'dinov2', 'expand'),
    ('granite', 'dinov2_with_registers', 'clap', 'frames', 'linear'),
]
REST = pairwise(language=LANGUAGE, image=IMAGE, audio=AUDIO, video=VIDEO, projector=PROJECTORS)
COMBINATIONS = in_tiers([*FIRST, *(each for each in REST if each not in FIRST)], FIRST)
NAMES = 'language', 'image', 'audio', 'video', 'projector'

Parts = Callable[[str], Path]
Made = Callable[..., Path]


@pytest.fixture(scope='session')
def made(parts: Parts, shared_cache: Path) -> Made:
    """`made('llama', 'clip', 'whisper', None, 'mlp')` is the folder of a composed model."""

    def combined(language: str, image: str, audio: str, video: str | None, projector: str) -> Path:
        heads = {'num_tokens': 6, 'num_heads': 2} if projector == 'transformer' else {}
        settings: dict[str, Any] = {
            'language_model': str(parts(language)),
            'image': {'encoder': str(parts(image)), **heads},
            'audio': {'encoder': str(parts(audio)), **heads},
            'projector': projector,
        }
        if video is not None:
            settings['video'] = {'encoder': video if video == 'frames' else str(parts(video)), **heads}
        name = f'{language}-{image}-{audio}-{video}-{projector}'
        return once(shared_cache, name, lambda folder: compose(read_compose(settings, 'test'), folder))

    return combined


def stored(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint as the plain class of transformers has them."""
    auto = transformers.AutoModelForImageTextToText if 'model_type": "composed' in config_of(folder) else None
    return (auto or transformers.AutoModel).from_pretrained(folder).state_dict()


def config_of(folder: Path) -> str:
    return (folder / 'config.json').read_text()


@pytest.mark.parametrize(NAMES, COMBINATIONS)
def test_it_holds_the_weights_of_its_parts_and_reloads_to_the_bit(
    language: str, image: str, audio: str, video: str | None, projector: str, made: Made, parts: Parts, tmp_path: Path
) -> None:
    folder = made(language, image, audio, video, projector)
    found = stored(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(parts(language))
    body = {f'model.language_model.{name}': value for name, value in model.base_model.state_dict().items()}
    for name, value in [*body.items(), ('lm_head.weight', model.get_output_embeddings().weight)]:
        assert torch.equal(found[name][: len(value)], value), name
        # New rows are the mean of those that were there.
        for row in found[name][len(value) :]:
            torch.testing.assert_close(row, value.mean(0))
    for tower, part in (('vision_tower', image), ('audio_tower', audio)):
        source, prefix = stored(parts(part)), f'model.{tower}.encoders.0.'
        own = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
        whole = {re.sub(r'^(vision_model|audio_model|encoder)\.', '', name): name for name in source}
        for name, value in own.items():
            within = name if name in source else whole.get(name, whole.get(name.removeprefix('encoder.')))
            assert within is not None and torch.equal(source[within], value), name
        assert len(own) > 10
    everything = ''.join(file.read_text() for file in folder.glob('*.json'))
    assert str(parts(language).parent) not in everything, 'it refers to the folder of a part'
    again = tmp_path / 'again'
    transformers.AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(again)
    transformers.AutoProcessor.from_pretrained(folder).save_pretrained(again)
    other = stored(again)
    assert found.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in found.items())
    assert json.loads((again / 'processor_config.json').read_text()) == json.loads(
        (folder / 'processor_config.json').read_text()
    )


@pytest.mark.parametrize(NAMES, COMBINATIONS)
@torch.no_grad()
def test_scores_are_the_same_alone_in_a_batch_and_in_every_layout(
    language: str, image: str, audio: str, video: str | None, projector: str, made: Made
) -> None:
    folder = made(language, image, audio, video, projector)
    spec = load_spec(folder)
    kinds = ['image', 'audio', *(['video'] if video else [])]
    assert spec.reads == set(kinds) and spec.layouts == ('padded', 'packed', 'shared_prefix')
    conversations = [
        first_turn(kinds),
        [user('Hi'), assistant('Hello there!')],
        two_turns(kinds),
        first_turn(kinds[1:], 2, 'Another noise.'),
        first_turn(kinds[:1], 1, 'A picture.'),
    ]
    examples = [spec.encode(conversation) for conversation in conversations]
    alone = None
    for layout in spec.layouts:
        policy, collate = policy_of(folder, spec, layout), TokenCollator(spec, layout, dummy_kinds=kinds)
        if alone is None:
            alone = torch.cat([policy(TokenCollator(spec, layout)([example])).values for example in examples])
        for order in (examples, examples[::-1]):
            found = policy(collate(order)).values
            if order is not examples:
                sizes = [len(policy(collate([example])).values) for example in order]
                found = torch.cat(found.split(sizes)[::-1])
            assert (found - alone).abs().max() < 2e-5, layout


@pytest.mark.parametrize(NAMES, COMBINATIONS)
@torch.no_grad()
def test_plain_transformers_generates_from_it(
    language: str, image: str, audio: str, video: str | None, projector: str, made: Made
) -> None:
    folder = made(language, image, audio, video, projector)
    spec = load_spec(folder)
    model = transformers.AutoModelForMultimodalLM.from_pretrained(folder).eval()
    kinds = ['image', 'audio', *(['video'] if video else [])]
    prompts = [spec.encode_prompt(first_turn(some)[:1]) for some in (kinds, kinds[1:2])]
    together = model.generate(**spec.generation_inputs(prompts), max_new_tokens=4, do_sample=False)
    for prompt, row in zip(prompts, together, strict=True):
        alone = model.generate(**spec.generation_inputs([prompt]), max_new_tokens=4, do_sample=False)[0]
        answer = alone[len(prompt) :]
        assert len(answer) and answer.tolist() == row[-4:][: len(answer)].tolist()


def test_padding_must_not_reach_what_is_stacked(made: Made) -> None:
    """The comparison above is sharp: without the mask before stacking a short clip sounds otherwise beside a long."""
    folder = made('qwen3', 'siglip', 'wavlm', None, 'linear')
    model = AnyModel.from_pretrained(folder).eval()
    spec = load_spec(folder)
    short, long = (spec.encode(first_turn(['audio'], number)).prompt.media for number in (0, 2))
    together = spec.merge_media([short, long])
    with torch.no_grad():
        names = ('input_features', 'feature_attention_mask')
        alone = model.model.media_tokens('audio', *(short[name] for name in names))
        found = model.model.media_tokens('audio', *(together[name] for name in names))[: len(alone)]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
        together['feature_attention_mask'] = torch.ones_like(together['feature_attention_mask'])
        other = model.model.media_tokens('audio', *(together[name] for name in names))[: len(alone)]
    assert (other - alone).abs().max() > 1e-3


def test_one_encoder_of_images_and_an_mlp_become_a_llava(parts: Parts, tmp_path: Path) -> None:
    for name in ('clip', 'siglip'):
        settings = {'language_model': str(parts('llama')), 'image': str(parts(name))}
        folder = compose(read_compose(settings, 'test'), tmp_path / name)
        assert json.loads(config_of(folder))['model_type'] == 'llava'
        model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
        found = model.model.vision_tower.state_dict()
        source = stored(parts(name))
        assert all(
            torch.equal(value, source.get(key, source.get(f'vision_model.{key}'))) for key, value in found.items()
        )
        spec = load_spec(folder)
        example = spec.encode(first_turn(['image']))
        (token,) = spec.media_token_ids
        assert int((example.prompt.ids == token).sum()) == 16
        with torch.no_grad():
            scored = policy_of(folder, spec, 'padded')(TokenCollator(spec, 'padded')([example])).values
        assert scored.isfinite().all()


def test_a_head_tied_to_an_embedding_of_another_name_is_no_llava(parts: Parts, tmp_path: Path) -> None:
    # A LLaVA looks for `embed_tokens`, and GPT-2 calls it `wte`.
    folder = compose(
        read_compose({'language_model': str(parts('gpt2')), 'image': str(parts('clip'))}, 'test'), tmp_path / 'made'
    )
    assert json.loads(config_of(folder))['model_type'] == 'composed'
    model = AnyModel.from_pretrained(folder)
    assert model.lm_head.weight is model.model.language_model.wte.weight


def test_frozen_towers_and_norms_over_the_batch_keep_to_evaluation(made: Made) -> None:
    model = AnyModel.from_pretrained(made('granite', 'dinov2_with_registers', 'clap', 'frames', 'linear'))
    model.model.vision_tower.requires_grad_(False)
    model.train()
    assert not any(module.training for module in model.model.vision_tower.modules())
    modes = {type(module).__name__: module.training for module in model.model.audio_tower.modules()}
    assert modes.pop('BatchNorm2d') is False and modes['Linear'] and model.model.language_model.training


def test_audio_of_the_base_models_is_normed_over_its_own_samples(parts: Parts, made: Made) -> None:
    """Of one clip alone the mask makes no difference: the features are those of transformers' own class."""
    model = AnyModel.from_pretrained(made('llama', 'clip', 'wav2vec2', 'frames', 'mlp')).eval()
    own = transformers.AutoModel.from_pretrained(parts('wav2vec2')).eval()
    samples = torch.randn(1, 6000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.model.audio_tower(samples, torch.ones_like(samples).long())
        torch.testing.assert_close(found['features'], own(samples).last_hidden_state, atol=1e-5, rtol=0)
    assert int(found['counts']) == found['features'].shape[1]


def test_the_layer_that_is_asked_for_is_that_of_transformers(parts: Parts, tmp_path: Path) -> None:
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    for name in IMAGE:
        settings = {'language_model': str(parts('llama')), 'image': {'encoder': str(parts(name)), 'feature_layer': 1}}
        folder = compose(read_compose({**settings, 'projector': 'linear'}, 'test'), tmp_path / name)
        tower = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval().model.vision_tower
        own = transformers.AutoModel.from_pretrained(parts(name)).eval()
        own = own.vision_model if name == 'clip' else own
        with torch.no_grad():
            wanted = own(pixel_values=pixels, output_hidden_states=True).hidden_states[1]
            torch.testing.assert_close(tower(pixels)['features'], wanted, atol=1e-5, rtol=0)
    for name in ('whisper', 'wav2vec2', 'hubert'):
        settings = {'language_model': str(parts('llama')), 'audio': {'encoder': str(parts(name)), 'feature_layer': 1}}
        folder = compose(read_compose(settings, 'test'), tmp_path / name)
        tower = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval().model.audio_tower
        own = transformers.AutoModel.from_pretrained(parts(name)).eval()
        own, values = (own.encoder, torch.randn(1, 32, 200)) if name == 'whisper' else (own, torch.randn(1, 6000))
        with torch.no_grad():
            wanted = own(values, output_hidden_states=True).hidden_states[1]
            found = tower(values, torch.ones(1, values.shape[-1]).long())['features']
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_two_encoders_stand_side_by_side(parts: Parts, tmp_path: Path) -> None:
    def several(*names: str) -> list[str]:
        return [str(parts(name)) for name in names]

    settings = {
        'language_model': str(parts('llama')),
        'image': {
            'encoder': [str(parts('siglip')), str(parts('dinov2'))],
            'start_token': '<img>',
            'end_token': '</img>',
        },
        'audio': {'encoder': several('whisper', 'wavlm')},
        'video': 'frames',
    }
    folder = compose(read_compose(settings, 'test'), tmp_path / 'two')
    spec = load_spec(folder)
    conversations = [two_turns(['image', 'audio', 'video']), first_turn(['audio'], 1), first_turn(['video'], 2)]
    examples = [spec.encode(conversation) for conversation in conversations]
    text = spec.tokenizer.decode(examples[0].prompt.ids)
    assert '<img>' + '<image>' * 16 + '</img>' in text
    policy = policy_of(folder, spec, 'padded')
    with torch.no_grad():
        alone = torch.cat([policy(TokenCollator(spec, 'padded')([example])).values for example in examples])
        torch.testing.assert_close(policy(TokenCollator(spec, 'padded')(examples)).values, alone, atol=2e-5, rtol=0)
    again = transformers.AutoProcessor.from_pretrained(folder)
    assert type(again.image_processor_2).__name__ == 'CLIPImageProcessor'
    assert again.feature_extractor_2.sampling_rate == 16000


def test_its_code_needs_none_of_the_package() -> None:
    folder = Path(composed.__file__).parent
    names = {name.partition('.')[0] for name in CODE.values()}
    for name in names:
        imported = re.findall(
            r'^ *from (\S+) import|^ *import (\S+)', (folder / f'{name}.py').read_text(), re.MULTILINE
        )
        modules = {one or other for one, other in imported}
        assert not [module for module in modules if 'align_anything' in module], name
        assert {module[1:] for module in modules if module.startswith('.')} <= names


def test_it_loads_by_the_code_that_it_brings(parts: Parts, tmp_path: Path) -> None:
    settings = {'language_model': str(parts('llama')), 'image': str(parts('clip')), 'audio': str(parts('whisper'))}
    folder = compose(read_compose(settings, 'test'), tmp_path / 'model', with_code=True)
    # The package loads it by its own classes, or with that code.
    logits = []
    for trusted in (False, True):
        spec = load_spec(folder, trust_remote_code=trusted)
        model = AnyModel.from_pretrained(folder, trust_remote_code=trusted).eval()
        own = type(model.model).__module__.startswith('transformers_modules')
        assert own is trusted
        inputs = spec.generation_inputs([spec.encode_prompt(first_turn(['image', 'audio'])[:1])])
        with torch.no_grad():
            logits.append(model(**inputs).logits)
        out = tmp_path / f'out-{trusted}'
        export_model(model, None, out, tokenizer=spec.tokenizer, processor=spec.processor)
        assert {f'{name.partition(".")[0]}.py' for name in CODE.values()} <= {path.name for path in out.iterdir()}
        assert 'auto_map' in config_of(out) and 'auto_map' in (out / 'processor_config.json').read_text()
    assert torch.equal(*logits)


@pytest.mark.extended
def test_it_loads_without_the_package_where_it_brings_its_code(parts: Parts, tmp_path: Path) -> None:
    settings = {'language_model': str(parts('llama')), 'image': str(parts('clip')), 'audio': str(parts('whisper'))}
    folder = compose(read_compose(settings, 'test'), tmp_path / 'model', with_code=True)
    program = f"""
import sys, torch, transformers
from PIL import Image
sys.modules['align_anything'] = None
processor = transformers.AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
model = transformers.AutoModelForImageTextToText.from_pretrained({str(folder)!r}, trust_remote_code=True).eval()
inputs = processor(text=['<image> and'], images=[Image.new('RGB', (40, 30), 'red')], return_tensors='pt')
print(model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, -4:].tolist())
model.save_pretrained({str(tmp_path / 'again')!r}); processor.save_pretrained({str(tmp_path / 'again')!r})
"""
    ran = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert {'modeling_composed.py', 'processing_composed.py'} <= {path.name for path in (tmp_path / 'again').iterdir()}


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({}, 'image: nothing is composed'),
        ({'image': 'clip', 'audo': 'whisper'}, "no such setting. Did you mean 'audio'?"),
        ({'image': {'encoder': 'clip', 'num_token': 4}}, "Did you mean 'num_tokens'?"),
        ({'image': {'encoder': 'clip', 'num_tokens': 4}}, 'the projector mlp has none (transformer and expand have)'),
        ({'image': {'encoder': 'clip', 'projector': 'expand', 'stack': 2}}, 'the projector expand has none'),
        ({'image': {'encoder': 'clip', 'precomputed_dim': 4}}, 'means nothing with precomputed_dim'),
        ({'image': {}}, 'name its encoder'),
        ({'video': 'frames'}, 'there is none; name one'),
        ({'image': 'frames'}, 'only videos have frames'),
        ({'image': ['clip', 'vit', 'dinov2']}, 'at most 2'),
        ({'image': 'clip', 'projector': 'mpl'}, "'linear', 'mlp'"),
        (
            {'image': {'encoder': 'clip', 'num_tokens': 2, 'perception_tokens': 2, 'projector': 'expand'}},
            'are the same',
        ),
    ],
)
def test_wrong_settings_are_told_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_compose({'language_model': 'llama', **settings}, 'compose')
    assert words in str(error.value) and 'compose' in str(error.value)


@pytest.mark.parametrize(
    ('language', 'settings', 'words'),
    [
        ('llama', {'image': 'whisper'}, "is a 'whisper', which is none of the encoders that are known for image"),
        ('llama', {'audio': 'clip'}, 'none of the encoders that are known for audio'),
        ('llama', {'image': 'llama'}, "is a 'llama'"),
        ('llava', {'image': 'clip'}, 'which reads media already'),
        ('llama', {'image': {'encoder': 'clip', 'feature_layer': 3}}, 'has layers 1 to 2, so 3 is none'),
        ('llama', {'audio': {'encoder': 'clap', 'feature_layer': 1}}, 'differ in size'),
        ('llama', {'image': {'encoder': 'clip', 'projector': 'transformer', 'num_heads': 3}}, '3 heads do not divide'),
        ('llama', {'image': {'encoder': ['clip', 'dinov2'], 'select': 'full'}}, 'cannot stand side by side'),
        ('llama', {'image': 'nowhere/at/all'}, 'does not exist'),
        ('llama', {'image': {'encoder': 'siglip', 'select': 'cls'}}, 'has no token for the whole of a medium'),
        ('llama', {'audio': {'encoder': 'whisper', 'select': 'cls'}}, 'take pooled'),
        ('clip', {'image': 'clip'}, 'which writes no text'),
    ],
)
def test_what_cannot_be_composed_is_refused_before_weights_are_read(
    language: str, settings: dict[str, Any], words: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **named: Any) -> None:
        raise AssertionError('weights are read')

    for auto in (transformers.AutoModel, transformers.AutoModelForCausalLM):
        monkeypatch.setattr(auto, 'from_pretrained', never)

    def located(value: Any) -> Any:
        if isinstance(value, list):
            return [located(item) for item in value]
        return str(parts(value)) if value in (*ENCODERS, 'llama') else value

    whole = {
        kind: {**part, 'encoder': located(part['encoder'])} if isinstance(part, dict) else located(part)
        for kind, part in settings.items()
    }
    with pytest.raises(ModelError) as error:
        compose(read_compose({'language_model': str(parts(language)), **whole}, 'compose'), tmp_path / 'out')
    assert words in str(error.value) and not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('processor', 'words'),
    [
        (
            {'size': {'height': 56, 'width': 84}},
            'makes images of 56 x 84 pixels, and its encoder has positions for 56 x 56',
        ),
        ({'do_resize': False}, 'makes images of different sizes'),
        ({'size': {'shortest_edge': 56}, 'do_center_crop': False}, 'makes images of different sizes'),
    ],
)
def test_images_that_are_no_squares_of_the_encoder_are_refused(
    processor: dict[str, Any], words: str, parts: Parts, tmp_path: Path
) -> None:
    """Before training, and not in the midst of it by the encoder."""
    shutil.copytree(parts('siglip'), tmp_path / 'encoder')
    kind = 'CLIPImageProcessor' if 'do_center_crop' in processor else 'SiglipImageProcessor'
    getattr(transformers, kind)(**processor).save_pretrained(tmp_path / 'encoder')
    settings = {'language_model': str(parts('llama')), 'image': str(tmp_path / 'encoder')}
    with pytest.raises(ModelError, match=f'image.encoder: .*{words}'):
        compose(read_compose(settings, 'compose'), tmp_path / 'out')


def test_encoders_of_images_that_are_no_squares_are_refused(parts: Parts, tmp_path: Path) -> None:
    oblong = transformers.ViTConfig(**SHAPE, image_size=[56, 84])
    of_any_shape = transformers.Siglip2VisionConfig(**SHAPE, patch_size=14, num_patches=16)
    for config, words in (
        (oblong, r'images of \[56, 84\] pixels .* are squares'),
        (of_any_shape, 'NaFlex.* name a SigLIP 2'),
    ):
        config.save_pretrained(tmp_path / config.model_type)
        settings = {'language_model': str(parts('llama')), 'image': str(tmp_path / config.model_type)}
        with pytest.raises(ModelError, match=words):
            compose(read_compose(settings, 'compose'), tmp_path / 'out')


def test_a_folder_that_is_not_empty_stays(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / 'kept').write_text('mine')
    settings = {'language_model': str(parts('llama')), 'image': str(parts('clip'))}
    with pytest.raises(ModelError, match='not an empty folder'):
        compose(read_compose(settings, 'compose'), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['kept']


def test_audio_longer_than_the_window_of_its_encoder_is_refused(made: Made) -> None:
    processor = transformers.AutoProcessor.from_pretrained(
        made('granite', 'dinov2_with_registers', 'clap', 'frames', 'linear')
    )
    with pytest.raises(ValueError, match='takes 2 s at once'):
        processor(text='<audio>', audio=[torch.zeros(40000).numpy()])
    with pytest.raises(ValueError, match='2 placeholders'):
        processor(text='<audio><audio>', audio=[torch.zeros(400).numpy()])


def test_a_registered_type_is_heard(tmp_path: Path) -> None:
    """A type that a library registered with transformers, though no family file knows it."""

    class OwnConfig(transformers.LlamaConfig):
        model_type = 'registered_llama'

    class OwnModel(transformers.LlamaForCausalLM):
        config_class = OwnConfig

    folder = build('llama', tmp_path / 'model')
    config = json.loads(config_of(folder))
    (folder / 'config.json').write_text(json.dumps({**config, 'model_type': 'registered_llama'}))
    with pytest.raises(ModelError, match='does not know the model_type'):
        load_spec(folder)
    transformers.AutoConfig.register('registered_llama', OwnConfig)
    transformers.AutoModelForCausalLM.register(OwnConfig, OwnModel)
    assert load_spec(folder).model_type == 'registered_llama'
    assert isinstance(AnyModel.from_pretrained(folder), OwnModel)
