"""Exported checkpoints: the source's names, plain reload, adapters apart and merged, ZeRO-3 included."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig

from align_anything.configs.schema import BnbCfgs
from align_anything.core.errors import ModelError
from align_anything.models.any_model import AnyModel, AnyModelForScore, transformers_class
from align_anything.models.checkpoint import stored_keys
from align_anything.models.export import export_model
from align_anything.models.fingerprint import encoding_fingerprint
from align_anything.models.pretrained_model import load_model, load_spec, tune_model
from tests.harness.pairwise import covering, in_tiers
from tests.harness.ranks import run_ranks
from tests.models.common import (
    DEFAULT_FAMILIES,
    IMAGE_FAMILIES,
    TEXT_FAMILIES,
    logits,
    lora_cfgs,
    model_inputs,
    stir,
)

Tiny = Callable[..., Path]
FAMILIES = (*TEXT_FAMILIES, *IMAGE_FAMILIES, *DEFAULT_FAMILIES)
# Family, whether the weights are divided before the adapter comes, and whether one does.
ZERO3 = [*product(('llava', 'qwen2_vl', 'gemma3', 'qwen3_moe'), (False, True), (False, True))]


def _export(model: Any, spec: Any, out: Path, **options: Any) -> Path:
    state = options.pop('state_dict', None)
    export_model(model, state, out, tokenizer=spec.tokenizer, processor=spec.processor, **options)
    return out


def _plain(folder: Path) -> Any:
    """The checkpoint as a user without this package loads it."""
    model = AnyModel.from_pretrained(folder)
    return transformers_class(model.config).from_pretrained(folder)


@pytest.mark.parametrize('family', FAMILIES)
def test_full_export_has_the_names_values_and_files_of_the_source(family: str, tiny: Tiny, tmp_path: Path) -> None:
    source = tiny(family)
    spec = load_spec(source)
    model = load_model(source, spec.components)
    gathered = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, state in (('live', None), ('gathered', gathered)):
        out = _export(model, spec, tmp_path / name, state_dict=state)
        assert stored_keys(out) == stored_keys(source)
        before, after = load_file(source / 'model.safetensors'), load_file(out / 'model.safetensors')
        assert all(torch.equal(before[key], after[key]) for key in before)
        reloaded = _plain(out)
        assert type(reloaded).__module__.startswith('transformers.')
        assert json.loads((out / 'config.json').read_text())['architectures'] == [type(reloaded).__name__]
        inputs = model_inputs(spec)
        assert torch.equal(logits(reloaded, inputs), logits(model, inputs))
        again = load_spec(out)
        assert again.renderer.template == spec.renderer.template
        assert again.tokenizer('a red dog').input_ids == spec.tokenizer('a red dog').input_ids


@pytest.mark.parametrize(
    ('family', 'old', 'new'),
    [
        ('llava', 'vision_tower.', 'vision_tower.vision_model.'),
        ('llava', 'language_model.model.', 'model.language_model.'),
        ('qwen2_vl', 'visual.', 'model.visual.'),
    ],
)
def test_names_of_other_generations_of_a_checkpoint_are_kept(
    family: str, old: str, new: str, tiny: Tiny, tmp_path: Path
) -> None:
    source = tmp_path / 'source'
    spec = load_spec(tiny(family))
    _export(load_model(tiny(family), spec.components), spec, source)
    file = source / 'model.safetensors'
    renamed = {
        new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in load_file(file).items()
    }
    assert any(name.startswith(new) for name in renamed)
    save_file(renamed, file, {'format': 'pt'})
    out = _export(load_model(source, spec.components), spec, tmp_path / 'out')
    assert stored_keys(out) == sorted(renamed)


def _zero3_export(rank: int, source: Path, out: Path, lora: bool, partition_first: bool) -> list[str]:
    import deepspeed

    from align_anything.engines.process_group import join_process_group

    join_process_group()
    from transformers.integrations import HfDeepSpeedConfig

    config = {
        'train_micro_batch_size_per_gpu': 1,
        'zero_optimization': {'stage': 3, 'stage3_param_persistence_threshold': 0},
    }
    alive = HfDeepSpeedConfig(config) if partition_first else None
    spec = load_spec(source)
    model = load_model(source, spec.components)
    if lora:
        model = tune_model(model, spec.components, lora_cfgs=lora_cfgs())
        torch.manual_seed(0)
    if alive is None:
        deepspeed.zero.Init(module=model, config_dict_or_path=config)
    parameters = [parameter for parameter in model.parameters() if 'ds_id' in vars(parameter)]
    assert parameters and all(parameter.numel() == 0 for parameter in parameters)
    with pytest.raises(ModelError, match='gathered'):
        _export(model, spec, out / 'refused', merge_adapter=lora)
    with deepspeed.zero.GatheredParameters(parameters):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _export(model, spec, out, state_dict=state, merge_adapter=lora)
    return stored_keys(out)


@pytest.mark.parametrize(
    ('family', 'partition_first', 'lora'),
    in_tiers(ZERO3, covering(ZERO3)),
)
def test_zero3_exports_the_names_of_the_source(
    family: str, partition_first: bool, lora: bool, tiny: Tiny, tmp_path: Path
) -> None:
    source = tiny(family)
    (keys,) = run_ranks(_zero3_export, 1, args=(source, tmp_path / 'out', lora, partition_first))
    assert keys == stored_keys(source)
    before, after = load_file(source / 'model.safetensors'), load_file(tmp_path / 'out' / 'model.safetensors')
    # A fresh adapter adds nothing, so merged weights are the source's too.
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize('changes', [{}, {'use_rslora': True}, {'use_dora': True}], ids=['lora', 'rslora', 'dora'])
@pytest.mark.parametrize('family', ['qwen2', 'opt', 'llava', 'qwen2_vl', 'gemma3'])
def test_merged_export_computes_what_the_live_adapter_computes(
    family: str, changes: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    source = tiny(family)
    spec = load_spec(source)
    base = load_model(source, spec.components)
    vision = 'image' in spec.reads
    inputs = model_inputs(spec)
    plain = logits(base, inputs)
    model = tune_model(base, spec.components, lora_cfgs=lora_cfgs(vision_lora=vision, **changes))
    stir(model)
    live = logits(model, inputs)
    assert (live - plain).abs().max() > 1e-3
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out = _export(model, spec, tmp_path / 'merged', merge_adapter=True)
    assert stored_keys(out) == stored_keys(source)
    torch.testing.assert_close(logits(_plain(out), inputs), live, atol=1e-5, rtol=0)
    # The live model went through it untouched: still wrapped, every tensor bit-identical.
    after = model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
    assert torch.equal(logits(model, inputs), live)


@pytest.mark.parametrize('family', ['qwen2', 'llava'])
def test_adapter_export_reloads_on_the_source(family: str, tiny: Tiny, tmp_path: Path) -> None:
    source = tiny(family)
    spec = load_spec(source)
    model = tune_model(load_model(source, spec.components), spec.components, lora_cfgs=lora_cfgs(use_dora=True))
    stir(model)
    out = _export(model, spec, tmp_path / 'adapter', end_of_turn_id=7)
    assert not (out / 'model.safetensors').exists()
    reloaded = PeftModel.from_pretrained(load_model(source, spec.components), out)
    inputs = model_inputs(spec)
    torch.testing.assert_close(logits(reloaded, inputs), logits(model, inputs), atol=1e-6, rtol=0)
    saved = AutoProcessor if spec.processor else AutoTokenizer
    assert saved.from_pretrained(out).chat_template == spec.renderer.template
    assert GenerationConfig.from_pretrained(out).eos_token_id[-1] == 7


@pytest.mark.parametrize(('family', 'module'), [('llava', 'multi_modal_projector'), ('qwen2', 'lm_head')])
def test_modules_trained_whole_are_in_both_exports(family: str, module: str, tiny: Tiny, tmp_path: Path) -> None:
    source = tiny(family)
    spec = load_spec(source)
    model = tune_model(
        load_model(source, spec.components), spec.components, lora_cfgs=lora_cfgs(modules_to_save=[module])
    )
    stir(model)
    inputs = model_inputs(spec)
    live = logits(model, inputs)
    merged = _export(model, spec, tmp_path / 'merged', merge_adapter=True)
    assert stored_keys(merged) == stored_keys(source)
    torch.testing.assert_close(logits(_plain(merged), inputs), live, atol=1e-5, rtol=0)
    before, after = load_file(source / 'model.safetensors'), load_file(merged / 'model.safetensors')
    assert any(module in key and not torch.equal(before[key], after[key]) for key in before)
    adapter = _export(model, spec, tmp_path / 'adapter')
    reloaded = PeftModel.from_pretrained(load_model(source, spec.components), adapter)
    torch.testing.assert_close(logits(reloaded, inputs), live, atol=1e-6, rtol=0)


@pytest.mark.parametrize('bits', [4, 8])
def test_quantised_base_merges_into_full_precision(bits: int, tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip('bitsandbytes')
    source = tiny('llava')
    spec = load_spec(source)
    bnb = BnbCfgs(use_bnb=True, load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = tune_model(load_model(source, spec.components, bnb_cfgs=bnb), spec.components, lora_cfgs=lora_cfgs())
    stir(model)
    inputs = model_inputs(spec)
    out = _export(model, spec, tmp_path / 'merged', merge_adapter=True)
    assert stored_keys(out) == stored_keys(source)
    assert 'quantization_config' not in json.loads((out / 'config.json').read_text())
    # 4-bit layers multiply dequantised weights; 8-bit layers also round their inputs to 8 bits.
    tolerance = 1e-5 if bits == 4 else 5e-2
    torch.testing.assert_close(logits(_plain(out), inputs), logits(model, inputs), atol=tolerance, rtol=0)
    adapter = _export(model, spec, tmp_path / 'adapter')
    assert (adapter / 'adapter_model.safetensors').exists()


def test_score_model_reloads_with_its_head_and_as_a_language_model(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny('llava')
    spec = load_spec(source)
    model = load_model(source, spec.components, is_reward_model=True)
    stir(model)
    out = _export(model, spec, tmp_path / 'scores')
    assert stored_keys(out) == sorted([*stored_keys(source), 'score.weight'])
    reloaded = AnyModelForScore.from_pretrained(out)
    assert torch.equal(reloaded.score.weight, model.score.weight)
    assert _plain(out).lm_head.weight.shape == model.lm_head.weight.shape


def test_end_of_turn_token_stops_generation(tiny: Tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny('qwen2'))
    model = load_model(tiny('qwen2'), spec.components)
    model.generation_config.eos_token_id = 2
    # A pair that transformers itself refuses to save, as checkpoints of the hub have it.
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, False
    out = _export(model, spec, tmp_path / 'out', end_of_turn_id=5)
    assert GenerationConfig.from_pretrained(out).eos_token_id == [2, 5]
    assert model.generation_config.eos_token_id == 2
    model.generation_config.eos_token_id = [5, 2]
    assert GenerationConfig.from_pretrained(
        _export(model, spec, tmp_path / 'again', end_of_turn_id=5)
    ).eos_token_id == [5, 2]


def test_half_precision_is_written_and_declared(tiny: Tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny('llava'))
    out = _export(load_model(tiny('llava'), spec.components, dtype=torch.bfloat16), spec, tmp_path / 'out')
    assert {tensor.dtype for tensor in load_file(out / 'model.safetensors').values()} == {torch.bfloat16}
    assert json.loads((out / 'config.json').read_text())['dtype'] == 'bfloat16'


def test_large_models_are_written_in_shards(tiny: Tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny('qwen2_vl'))
    model = load_model(tiny('qwen2_vl'), spec.components)
    out = _export(model, spec, tmp_path / 'out', max_shard_size='200KB')
    assert len(list(out.glob('model-*.safetensors'))) > 1
    assert stored_keys(out) == stored_keys(tiny('qwen2_vl'))
    assert torch.equal(logits(_plain(out), model_inputs(spec)), logits(model, model_inputs(spec)))


def test_state_of_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny('qwen2'))
    model = load_model(tiny('qwen2'), spec.components)
    state = model.state_dict()
    state['model.extra.weight'] = torch.zeros(1)
    with pytest.raises(ModelError, match='model.extra.weight'):
        _export(model, spec, tmp_path / 'out', state_dict=state)


def test_the_fingerprint_of_an_encoding_is_the_same_whatever_was_encoded_last(tiny: Tiny) -> None:
    spec = load_spec(tiny('qwen2'))
    before = encoding_fingerprint(spec)
    spec.tokenizer(['one', 'one two three'], padding=True, truncation=True, max_length=2)
    assert encoding_fingerprint(spec) == before
