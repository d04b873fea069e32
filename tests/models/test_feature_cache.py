"""Features of frozen towers are kept: the same outputs with an empty cache, a full one and none; nothing runs twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.types import Batch
from align_anything.models.any_model import AnyModel
from align_anything.models.export import export_model
from align_anything.models.family import FamilySpec
from align_anything.models.feature_cache import CachedTower, cache_features, frozen_towers
from align_anything.models.lora import apply_lora
from align_anything.models.tower_calls import TowerCalls
from align_anything.models.trainable import freeze_components
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.models.common import lora_cfgs, stir
from tests.models.mixed import MEDIA, conversation_of, first_turn
from tests.models.samples import assistant, load, picture, single, user

Tiny = Callable[[str], Path]
FROZEN = {'vision_tower': True, 'audio_tower': True}
# In batches of other sizes, sums are taken in another order.
CLOSE = {'atol': 2e-5, 'rtol': 1e-4}


def open_model(folder: Path, spec: FamilySpec, **frozen: bool) -> nn.Module:
    model = AnyModel.from_pretrained(folder)
    freeze_components(model, spec.components, **(frozen or FROZEN))
    return model


def towers_of(model: nn.Module, spec: FamilySpec) -> list[CachedTower]:
    return [model.get_submodule(tower.name).forward for tower in frozen_towers(model, spec)]


def encoded(model: nn.Module, spec: FamilySpec) -> int:
    """How many items the towers ran for since the last time this was asked."""
    towers = towers_of(model, spec)
    total = sum(tower.encoded for tower in towers)
    for tower in towers:
        tower.encoded = 0
    return total


def scores_and_gradients(model: nn.Module, spec: FamilySpec, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores of a batch, and gradients of the projectors, which train on the features."""
    model.zero_grad()
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)
    scores = policy.train()(batch).values
    (scores * torch.linspace(0.5, 1.5, len(scores))).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return scores.detach(), {name: value for name, value in gradients.items() if spec.component_of(name) == 'mm_proj'}


def same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0], **CLOSE)
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize('family', MEDIA)
def test_outputs_are_those_without_a_cache_and_the_second_time_no_tower_runs(
    family: str, tiny: Tiny, tmp_path: Path
) -> None:
    spec = load(tiny(family))
    shared = spec.encode(first_turn(MEDIA[family], 1))
    few = TokenCollator(spec, 'padded')([shared])
    many = TokenCollator(spec, 'padded')([spec.encode(conversation_of(family), 'last'), shared, spec.encode(single())])
    model = open_model(tiny(family), spec)
    plain = scores_and_gradients(model, spec, many)
    assert plain[1] and all(value is not None and value.any() for value in plain[1].values())
    cache_features(model, spec, tmp_path)
    first = scores_and_gradients(model, spec, many)
    same(first, plain)
    assert encoded(model, spec) == len(files(tmp_path)) > 1

    # Features of timm's networks come in another order in memory than they are kept in, and sums in another order.
    exact = {'atol': 1e-5, 'rtol': 0} if family == 'gemma3n' else {'atol': 0, 'rtol': 0}
    torch.testing.assert_close(score(model, spec, many), first[0], **exact)
    assert encoded(model, spec) == 0
    needed = set(files(tmp_path))
    score(model, spec, few)
    # Idefics2's processor pads images to the largest of a batch, which makes another image of them. So does Gemma
    # 3n's with audio clips, whose last frames see the padding. Qwen3-Omni reads silence beside clips that are short.
    assert encoded(model, spec) == (family in ('idefics2', 'gemma3n', 'qwen3_omni_moe_thinker'))
    lost = files(tmp_path)[::2]
    for path in lost:
        path.unlink()
    found = score(model, spec, many)
    assert encoded(model, spec) == len(needed.intersection(lost)) > 0
    torch.testing.assert_close(found, plain[0], **CLOSE)


@pytest.fixture
def spec(tiny: Tiny) -> FamilySpec:
    return load(tiny('llava'))


def pictures(spec: FamilySpec, *colours: str) -> Batch:
    rows = [[user(picture(40, 40, colour), 'What?'), assistant('It.')] for colour in colours]
    return TokenCollator(spec, 'padded')([spec.encode(row) for row in rows])


def kept(tiny: Tiny, spec: FamilySpec, store: Path, change: Callable[[nn.Module], object] | None = None) -> nn.Module:
    """A LLaVA that keeps features in `store`; `change` alters it before."""
    model = open_model(tiny('llava'), spec)
    if change is not None:
        change(model)
    cache_features(model, spec, store)
    return model


def score(model: nn.Module, spec: FamilySpec, batch: Batch) -> Tensor:
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=model.dtype)
    with torch.no_grad():
        return policy(batch).values


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob('*.safetensors'))


def test_an_image_is_encoded_once_whatever_its_neighbours(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    model = kept(tiny, spec, tmp_path)
    for colours, expected in ((('red', 'blue', 'red'), 2), (('red',), 0), (('blue', 'green'), 1)):
        score(model, spec, pictures(spec, *colours))
        assert encoded(model, spec) == expected
    # Of the three hidden states the model reads one.
    assert len(files(tmp_path)) == 3
    layer = spec.config.vision_feature_layer
    assert load_file(files(tmp_path)[0]).keys() == {f'hidden_states.{layer}'}


def changed_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model.model.vision_tower.post_layernorm.weight[0] += 1e-3


@pytest.mark.parametrize(
    ('change', 'hit'),
    [
        (changed_weight, False),
        (lambda model: model.bfloat16(), False),
        (lambda model: vars(model.model.vision_tower.config).update(layer_norm_eps=0.1), False),
        # What lies behind the tower is no part of what it computes.
        (lambda model: model.model.multi_modal_projector.linear_1.weight.data.zero_(), True),
    ],
)
def test_another_tower_finds_nothing(
    change: Callable[[nn.Module], object], hit: bool, tiny: Tiny, spec: FamilySpec, tmp_path: Path
) -> None:
    batch = pictures(spec, 'red')
    score(kept(tiny, spec, tmp_path), spec, batch)
    other = kept(tiny, spec, tmp_path, change)
    score(other, spec, batch)
    assert encoded(other, spec) == (0 if hit else 1)


@pytest.mark.parametrize('content', [b'', b'half', None])
def test_a_broken_file_is_made_anew(content: bytes | None, tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    model, batch = kept(tiny, spec, tmp_path), pictures(spec, 'red')
    expected = score(model, spec, batch)
    [path] = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    encoded(model, spec)
    assert torch.equal(score(model, spec, batch), expected)
    assert encoded(model, spec) == 1 and path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_dropout_does_not_touch_what_is_kept(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    def drop(model: nn.Module) -> None:
        for module in model.model.vision_tower.modules():
            if 'dropout' in vars(module):
                module.dropout = 0.5

    batch = pictures(spec, 'red')
    expected = score(open_model(tiny('llava'), spec).eval(), spec, batch)
    dropping = open_model(tiny('llava'), spec)
    drop(dropping)
    assert not torch.allclose(score(dropping.train(), spec, batch), expected), 'or this test shows nothing'
    model = kept(tiny, spec, tmp_path, drop).train()
    torch.testing.assert_close(score(model, spec, batch), expected, **CLOSE)
    assert model.model.vision_tower.training


def test_reading_what_is_not_kept_is_an_error(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    model, batch = kept(tiny, spec, tmp_path), pictures(spec, 'red')
    tower = model.model.vision_tower
    output = tower(batch.inputs.arguments['pixel_values'], output_hidden_states=True)
    assert output.hidden_states[spec.config.vision_feature_layer].shape[0] == 1
    for read in (lambda: output.hidden_states[0], lambda: output.last_hidden_state, lambda: output['attentions']):
        with pytest.raises(ModelError, match='is kept'):
            read()


def test_calls_that_cannot_be_split_are_refused() -> None:
    calls = TowerCalls()
    with pytest.raises(ModelError, match=r'cannot be split into single media.*tower_calls'):
        calls.items({'patches': torch.zeros(8, 4), 'sizes': torch.zeros(2)})
    with pytest.raises(ModelError, match='vision_feature_layer'):
        calls.kept({'hidden_states': (torch.zeros(2, 3),)})
    with pytest.raises(ModelError, match='5 rows for 2 items'):
        calls.split({'last_hidden_state': torch.zeros(5, 3)}, [{}, {}])
    with pytest.raises(ModelError, match='tuple without names'):
        calls.kept((torch.zeros(2, 3),))


def test_what_is_saved_does_not_know_of_the_cache(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    model = kept(tiny, spec, tmp_path / 'features')
    score(model, spec, pictures(spec, 'red'))
    export_model(model, None, tmp_path / 'out', tokenizer=spec.tokenizer, processor=spec.processor)
    before, after = (load_file(folder / 'model.safetensors') for folder in (tiny('llava'), tmp_path / 'out'))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_only_frozen_towers_are_cached(tiny: Tiny) -> None:
    spec = load(tiny('qwen2_5_omni_thinker'))

    def names(**frozen: bool) -> list[str]:
        return [tower.name for tower in frozen_towers(open_model(tiny('qwen2_5_omni_thinker'), spec, **frozen), spec)]

    assert names(vision_tower=True, audio_tower=True) == ['visual', 'audio_tower']
    assert names(vision_tower=True) == ['visual'] and names(audio_tower=True) == ['audio_tower']
    with pytest.raises(
        ModelError, match=r'no tower of this model \(visual, audio_tower\) is frozen.*freeze_vision_tower'
    ):
        names(mm_proj=True)
    with pytest.raises(ModelError, match='it has none'):
        frozen_towers(AnyModel.from_pretrained(tiny('llama')), load(tiny('llama')))


def test_adapters_in_the_tower_are_refused_and_those_beside_it_are_not(tiny: Tiny, spec: FamilySpec) -> None:
    cfgs = lora_cfgs()
    beside = apply_lora(AnyModel.from_pretrained(tiny('llava')), cfgs, spec.components)
    assert [tower.name for tower in frozen_towers(beside, spec)] == ['model.vision_tower']
    within = apply_lora(AnyModel.from_pretrained(tiny('llava')), lora_cfgs(vision_lora=True), spec.components)
    with pytest.raises(ModelError, match='is frozen'):
        frozen_towers(within, spec)


def test_a_frozen_adapter_in_the_tower_makes_another_tower_of_it(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    batch = pictures(spec, 'red')
    plain = kept(tiny, spec, tmp_path)
    score(plain, spec, batch)
    adapted = apply_lora(AnyModel.from_pretrained(tiny('llava')), lora_cfgs(vision_lora=True), spec.components)
    stir(adapted)
    adapted.requires_grad_(False)
    expected = score(adapted, spec, batch)
    assert not torch.allclose(expected, score(plain, spec, batch), **CLOSE)
    cache_features(adapted, spec, tmp_path)
    torch.testing.assert_close(score(adapted, spec, batch), expected, **CLOSE)


def test_a_projector_that_trains_inside_a_tower_which_keeps_its_output_is_refused(tiny: Tiny) -> None:
    spec = load(tiny('qwen2_vl'))
    spec.tower_calls = lambda component: TowerCalls()
    with pytest.raises(ModelError, match=r"'model.visual.merger.* trains inside the tower 'model.visual'"):
        frozen_towers(open_model(tiny('qwen2_vl'), spec, vision_tower=True), spec)


def test_a_folder_that_cannot_be_made_is_a_setting_to_mend(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(SettingsError, match='model_cfgs.feature_cache_dir'):
        kept(tiny, spec, tmp_path / 'file' / 'folder')
