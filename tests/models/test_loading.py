"""Any checkpoint loads as its own class; what is no checkpoint, or not this one, is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from align_anything.core.errors import ModelError
from align_anything.models.any_model import AnyModel, AnyModelForScore
from align_anything.models.checkpoint import check_checkpoint
from align_anything.models.pretrained_model import (
    load_model,
    load_pretrained_models,
    load_spec,
    set_text_attention,
)
from align_anything.models.score import ScoreHead
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from tests.harness.ranks import RanksError, run_ranks
from tests.models.common import DEFAULT_FAMILIES, IMAGE_FAMILIES, TEXT_FAMILIES, logits, model_inputs

Tiny = Callable[..., Path]


@pytest.fixture
def broken(tiny: Tiny, tmp_path: Path) -> Callable[..., Path]:
    """`broken('llava')` returns a copy of a checkpoint that the test may damage; keywords change its config.json."""

    def copy(family: str, **changes: Any) -> Path:
        folder = shutil.copytree(tiny(family), tmp_path / family)
        config = json.loads((folder / 'config.json').read_text())
        for key, value in changes.items():
            config = {name: entry for name, entry in config.items() if name != key} | (
                {} if value is None else {key: value}
            )
        (folder / 'config.json').write_text(json.dumps(config))
        return folder

    return copy


@pytest.mark.parametrize('family', [*TEXT_FAMILIES, *IMAGE_FAMILIES, *DEFAULT_FAMILIES])
def test_a_checkpoint_loads_as_the_class_of_its_family(family: str, tiny: Tiny) -> None:
    model, tokenizer, processor = load_pretrained_models(tiny(family), 64)
    own = type(model).__module__ == f'align_anything.models.families.{model.config.model_type}'
    assert own == (family not in DEFAULT_FAMILIES)
    assert (processor is None) == (family in TEXT_FAMILIES or family == 'granite')
    assert processor is None or processor.tokenizer is tokenizer
    assert type(AnyModel.from_config(AutoConfig.from_pretrained(tiny(family)))) is type(model)
    assert torch.isfinite(logits(model, model_inputs(load_spec(tiny(family))))).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_weights_have_the_type_of_the_run(dtype: torch.dtype, tiny: Tiny) -> None:
    model = load_model(tiny('llava'), load_spec(tiny('llava')).components, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize('family', ['llama', 'llava', 'qwen2_vl', 'qwen3_vl', 'gemma3'])
def test_attention_is_set_for_the_language_model_alone(family: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    model = load_model(tiny(family), spec.components, attn_implementation='eager')
    text, vision = model.config.get_text_config(), None if family == 'llama' else model.config.vision_config
    assert text._attn_implementation == 'eager'
    assert vision is None or vision._attn_implementation == 'sdpa'
    inputs = model_inputs(spec)
    eager = logits(model, inputs)
    register_segment_attention()
    set_text_attention(model, SEGMENT_ATTENTION)
    assert text._attn_implementation == SEGMENT_ATTENTION
    assert vision is None or vision._attn_implementation == 'sdpa'
    torch.testing.assert_close(logits(model, inputs), eager, atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match='no_such_attention'):
        set_text_attention(model, 'no_such_attention')


def test_length_is_kept_within_the_positions_of_the_model(tiny: Tiny) -> None:
    limit = AutoConfig.from_pretrained(tiny('opt')).max_position_embeddings
    assert load_spec(tiny('opt'), model_max_length=limit + 1).max_length == limit
    assert load_spec(tiny('opt'), model_max_length=33).max_length == 33


def test_template_and_processor_arguments_are_in_force(tiny: Tiny, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    file = tmp_path / 'template.jinja'
    file.write_text(template)
    for given in (template, str(file)):
        assert load_spec(tiny('llama'), chat_template=given).renderer.template == template
    with pytest.raises(ModelError, match='neither a file'):
        load_spec(tiny('llama'), chat_template='no/such/file.jinja')
    spec = load_spec(tiny('qwen2_vl'), processor_kwargs={'max_pixels': 8 * 784, 'min_pixels': 4 * 784})
    assert spec.processor.image_processor.size.longest_edge == 8 * 784
    with pytest.raises(ModelError, match="has no 'max_pixel'. Did you mean 'max_pixels'"):
        load_spec(tiny('qwen2_vl'), processor_kwargs={'max_pixel': 8})
    with pytest.raises(ModelError, match='text model'):
        load_spec(tiny('llama'), processor_kwargs={'max_pixels': 8})
    assert load_spec(tiny('llama'), padding_side='left').tokenizer.padding_side == 'left'


def test_names_that_are_no_checkpoint_folder(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match='does not exist'):
        check_checkpoint(tmp_path / 'missing')
    with pytest.raises(ModelError, match='is a file'):
        check_checkpoint(tiny('llama') / 'config.json')
    # What looks like a name of the hub may be a folder misspelt, which the hub's own message does not tell.
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    shutil.copytree(tiny('llama'), tmp_path / 'here' / 'tiny_llama')
    with pytest.raises(ModelError, match="there is no such folder here. Did you mean 'tiny_llama'"):
        check_checkpoint('tiny_lama')
    with pytest.raises(ModelError, match=r'no config\.json'):
        check_checkpoint(tmp_path)
    (tmp_path / 'adapter_config.json').write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(ModelError, match='LoRA adapter.*some/base'):
        check_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_type': 'lama'}, "'lama'. Did you mean 'llama'"),
        ({'model_type': None}, 'no model_type'),
        ({'model_type': 'my_own', 'auto_map': {'AutoConfig': 'x.Y'}}, 'trust_remote_code'),
    ],
)
def test_unknown_architectures(changes: dict[str, Any], message: str, broken: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=message):
        load_spec(broken('llama', **changes))


def test_encoders_cannot_generate(broken: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="'clip_vision_model' is neither"):
        AnyModel.from_pretrained(broken('llama', model_type='clip_vision_model', hidden_size=32))


def test_damaged_files(broken: Callable[..., Path], tmp_path: Path) -> None:
    folder = broken('llama')
    weights = folder / 'model.safetensors'
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r'model\.safetensors is damaged or truncated'):
        check_checkpoint(folder)
    index = folder / 'model.safetensors.index.json'
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(ModelError, match='model-00001-of-00002.safetensors, which is missing'):
        check_checkpoint(folder)
    index.unlink()
    weights.unlink()
    with pytest.raises(ModelError, match='has no weights'):
        load_spec(folder)
    (folder / 'config.json').write_text('{"model_type": ')
    with pytest.raises(ModelError, match='not valid JSON'):
        check_checkpoint(folder)


def test_image_model_without_processor(broken: Callable[..., Path]) -> None:
    folder = broken('llava')
    (folder / 'processor_config.json').unlink()
    with pytest.raises(ModelError, match='without a processor'):
        load_spec(folder)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'intermediate_size': 96}, r'Other shapes: .*down_proj\.weight \(64, 128\) -> \(64, 96\)'),
        ({'num_hidden_layers': 3}, r'Missing: model\.layers\.2\.'),
        ({'model_type': 'opt'}, r'not those of OPTForCausalLM. Missing: model\.decoder.* Not used: .*model\.layers'),
    ],
)
def test_weights_of_another_architecture(changes: dict[str, Any], message: str, broken: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=message):
        AnyModel.from_pretrained(broken('llama', **changes))


def _zero3(rank: int, source: Path) -> dict[str, Any]:
    import deepspeed

    from align_anything.engines.process_group import join_process_group

    join_process_group()
    from transformers.integrations import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig({'train_micro_batch_size_per_gpu': 1, 'zero_optimization': {'stage': 3}})
    model = AnyModel.from_pretrained(source)
    assert alive.is_zero3()
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: (value.requires_grad, value.detach().clone()) for name, value in model.named_parameters()}


@pytest.mark.parametrize('family', ['llava', 'gemma3'])
def test_partitioned_loading_gives_the_same_model(family: str, tiny: Tiny) -> None:
    plain = {name: value for name, value in AnyModel.from_pretrained(tiny(family)).named_parameters()}
    for partitioned in run_ranks(_zero3, 2, args=(tiny(family),)):
        assert partitioned.keys() == plain.keys()
        assert all(torch.equal(value, plain[name]) for name, (_, value) in partitioned.items())


@pytest.mark.parametrize('changes', [{'intermediate_size': 96}, {'num_hidden_layers': 3}])
def test_partitioned_loading_refuses_another_architecture(changes: dict[str, Any], broken: Callable[..., Path]) -> None:
    with pytest.raises(RanksError, match='ModelError'):
        run_ranks(_zero3, 1, args=(broken('llama', **changes),))


def test_constant_positions_are_frozen_however_the_model_is_loaded(tmp_path: Path) -> None:
    config = Qwen2AudioConfig(
        audio_config={
            'd_model': 32,
            'encoder_layers': 1,
            'encoder_attention_heads': 2,
            'encoder_ffn_dim': 32,
            'num_mel_bins': 8,
            'max_source_positions': 20,
        },
        text_config={
            'model_type': 'qwen2',
            'vocab_size': 64,
            'hidden_size': 32,
            'intermediate_size': 32,
            'num_hidden_layers': 1,
            'num_attention_heads': 2,
            'num_key_value_heads': 2,
        },
        audio_token_index=3,
    )
    Qwen2AudioForConditionalGeneration(config).save_pretrained(tmp_path)
    (tmp_path / 'processor_config.json').write_text('{}')
    # transformers itself makes them trainable, which is why this package has to care.
    positions = 'model.audio_tower.embed_positions.weight'
    untouched = dict(Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path).named_parameters())
    assert untouched[positions].requires_grad
    frozen = {name for name, value in AnyModel.from_pretrained(tmp_path).named_parameters() if not value.requires_grad}
    (partitioned,) = run_ranks(_zero3, 1, args=(tmp_path,))
    assert frozen == {positions} == {name for name, (trains, _) in partitioned.items() if not trains}


def test_bin_weights_load_too(broken: Callable[..., Path], tiny: Tiny) -> None:
    folder = broken('llama')
    torch.save(load_file(folder / 'model.safetensors'), folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()
    expected = AnyModel.from_pretrained(tiny('llama')).state_dict()
    loaded = AnyModelForScore.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_score_head() -> None:
    head = ScoreHead(3)
    assert torch.equal(head.weight, ScoreHead(3).weight)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    hidden = torch.tensor([[[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]]], dtype=torch.bfloat16)
    # 1 + 2 + 3 = 6 and 0 + 4 + 3 = 7.
    scores = head.scores(hidden)
    assert scores.dtype == torch.float32 and scores.tolist() == [[6.0, 7.0]]


@pytest.mark.parametrize('family', ['llama', 'qwen2_vl'])
def test_score_models_start_with_the_same_head(family: str, tiny: Tiny, tmp_path: Path) -> None:
    first, second = (AnyModelForScore.from_pretrained(tiny(family)) for _ in range(2))
    assert torch.equal(first.score.weight, second.score.weight)
    assert first.score.weight.shape == (1, first.config.get_text_config().hidden_size)
    folder = shutil.copytree(tiny(family), tmp_path / 'scored')
    weights = load_file(folder / 'model.safetensors')
    weights['score.weight'] = torch.full_like(first.score.weight, 0.5)
    save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
    assert AnyModelForScore.from_pretrained(folder).score.weight.unique().tolist() == [0.5]


def test_what_documents_say_of_loading(tiny):
    model, tokenizer, processor = load_pretrained_models(tiny('llava'), model_max_length=77, modality=['text', 'image'])
    assert tokenizer.model_max_length == processor.tokenizer.model_max_length == 77
    load_pretrained_models(tiny('llama'), modality='text')
    positions = model.config.get_text_config().max_position_embeddings
    assert load_pretrained_models(tiny('llava'), 10**6, modality='text_image_to_text')[1].model_max_length == positions
    with pytest.raises(ModelError, match='reads no audio and no video'):
        load_pretrained_models(tiny('llava'), modality=['text_audio_to_text', 'video'])
    with pytest.raises(ModelError, match="there is no 'pictures'. There are: text, audio, image, video"):
        load_pretrained_models(tiny('llava'), modality='pictures')
