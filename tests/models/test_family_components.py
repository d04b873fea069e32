"""Every parameter belongs to exactly one component, and the components are the ones their names say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.core.errors import ModelError
from align_anything.models import structure
from tests.models.samples import FAMILIES, IMAGE, load

Tiny = Callable[[str], Path]


def names_of(spec: object) -> list[str]:
    return [name for name, _ in structure.skeleton(spec.config).named_parameters(remove_duplicate=False)]


@pytest.mark.parametrize('family', FAMILIES)
def test_every_parameter_belongs_to_one_component(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    names = names_of(spec)
    found = {
        component: {name for name in names if spec.component_of(name) == component} for component in spec.components
    }
    assert sum(len(members) for members in found.values()) == len(set(names))
    assert all(found.values()), 'a component without parameters'
    assert set(spec.components) == (
        {'vision_tower', 'mm_proj', 'language_model'} if family in IMAGE else {'language_model'}
    )
    assert {'lm_head.weight'} <= found['language_model']
    for name in found['language_model']:
        assert 'vision' not in name and 'visual' not in name and 'projector' not in name
    for name in found.get('mm_proj', ()):
        assert any(word in name for word in ('projector', 'merger', 'connector', 'image_newline')), name


@pytest.mark.parametrize('family', IMAGE)
def test_components_by_structure_agree_with_those_named_in_the_file(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    by_structure = structure.components(spec.config)
    assert {name: structure.component_of(by_structure, name) for name in names_of(spec)} == {
        name: spec.component_of(name) for name in names_of(spec)
    }


def test_the_longest_prefix_decides_and_whole_names_count() -> None:
    components = {'vision_tower': ['model.visual'], 'mm_proj': ['model.visual.merger'], 'language_model': ['model.lm']}
    assert structure.component_of(components, 'model.visual.blocks.0.weight') == 'vision_tower'
    assert structure.component_of(components, 'model.visual.merger.mlp.weight') == 'mm_proj'
    assert structure.component_of(components, 'model.visual.merger_norm.weight') == 'vision_tower'
    with pytest.raises(ModelError, match="'model.lmx.weight' belongs to no component"):
        structure.component_of(components, 'model.lmx.weight')


def test_logits_are_transformed_as_the_configuration_says(tiny: Tiny) -> None:
    # Granite divides by 4 in the tiny configuration, Gemma 2 caps at 30, Llama does neither.
    assert (load(tiny('granite')).softcap, load(tiny('granite')).logit_scale) == (None, 0.25)
    assert (load(tiny('gemma2')).softcap, load(tiny('gemma2')).logit_scale) == (30.0, 1.0)
    assert (load(tiny('llama')).softcap, load(tiny('llama')).logit_scale) == (None, 1.0)


@pytest.mark.parametrize('family', FAMILIES)
def test_layouts(family: str, tiny: Tiny) -> None:
    assert load(tiny(family)).layouts == ('padded', 'packed', 'shared_prefix')


@pytest.mark.parametrize('model_type', ['mamba', 'bloom'])
def test_state_along_the_row_and_positions_from_the_mask_mean_padded_rows(model_type: str) -> None:
    from transformers import CONFIG_MAPPING

    small = {'num_hidden_layers': 1, 'hidden_size': 64, 'n_layer': 1}
    assert structure.layouts(CONFIG_MAPPING[model_type](**small)) == ('padded',)
