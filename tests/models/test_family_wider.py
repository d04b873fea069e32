"""Families with videos and audio as checkpoints: plain transformers generates, every parameter has its component."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM, Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from align_anything.models import structure
from align_anything.models.any_model import AnyModel
from align_anything.models.pretrained_model import load_spec
from align_anything.models.trainable import freeze_components
from tests.models.mixed import AUDIO, MEDIA, first_turn, plain_inputs
from tests.models.samples import END, WIDER, load

Tiny = Callable[[str], Path]


@pytest.mark.parametrize('family', WIDER)
def test_plain_transformers_loads_and_generates_up_to_the_end_of_a_turn(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    model, report = AutoModelForMultimodalLM.from_pretrained(tiny(family), output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys']
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    end = spec.tokenizer.convert_tokens_to_ids(END[family])
    assert end in model.generation_config.eos_token_id and end == spec.renderer.end_of_turn_id
    # transformers' processor of SmolVLM loses the images of a conversation with videos, and its Gemma 4 their frames.
    kinds = {'smolvlm': ['video'], 'gemma4': ['image', 'audio']}.get(family, MEDIA[family])
    inputs = plain_inputs(spec, first_turn(kinds)[:1])
    inputs.pop('labels', None)
    generated = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert generated.shape[1] == inputs['input_ids'].shape[1] + 2


@pytest.mark.parametrize('family', WIDER)
def test_every_parameter_belongs_to_one_component_and_structure_finds_the_same(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    names = [name for name, _ in structure.skeleton(spec.config).named_parameters(remove_duplicate=False)]
    found = {each: {name for name in names if spec.component_of(name) == each} for each in spec.components}
    assert all(found.values()), 'a component without parameters'
    towers = {'audio_tower'} if family in AUDIO else set()
    towers |= {'vision_tower'} if 'image' in MEDIA[family] else set()
    written = {'generation', 'media_codec'} if family == 'janus' else set()
    assert set(spec.components) == {*towers, *written, 'mm_proj', 'language_model'}
    for name in found['language_model']:
        assert not any(word in name for word in ('vision', 'visual', 'projector', 'audio', 'vq', 'generation')), name
    by_structure = structure.components(spec.config)
    assert all(structure.component_of(by_structure, name) == spec.component_of(name) for name in names)


@pytest.mark.parametrize('family', AUDIO)
def test_the_audio_tower_freezes_on_its_own(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    model = AnyModel.from_pretrained(tiny(family))
    constant = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    freeze_components(model, spec.components, audio_tower=True)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {spec.component_of(name) for name in frozen - constant} == {'audio_tower'}
    assert 'audio_tower' not in {spec.component_of(name) for name, _ in model.named_parameters() if name not in frozen}


def test_of_a_whole_omni_checkpoint_the_thinker_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    thinker = AnyModel.from_pretrained(tiny('qwen2_5_omni_thinker'))
    config = Qwen2_5OmniConfig(thinker_config=thinker.config.to_dict(), enable_audio_output=False)
    model = Qwen2_5OmniForConditionalGeneration(config)
    model.thinker.load_state_dict(thinker.state_dict())
    model.save_pretrained(tmp_path)
    load(tiny('qwen2_5_omni_thinker')).processor.save_pretrained(tmp_path)
    loaded = AnyModel.from_pretrained(tmp_path)
    assert type(loaded) is type(thinker)
    weights = thinker.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert load_spec(tmp_path).reads == {'image', 'video', 'audio'}
