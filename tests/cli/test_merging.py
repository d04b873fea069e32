"""A merged checkpoint says what the adapter said, and loads with plain transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)

from align_anything.cli import merging
from align_anything.cli.merging import merge_adapter
from align_anything.configs.schema import BnbCfgs
from align_anything.core.errors import ModelError
from align_anything.models.checkpoint import stored_keys
from align_anything.models.export import export_model
from align_anything.models.pretrained_model import load_model, load_pretrained_models, load_spec, tune_model
from tests.models.common import logits, lora_cfgs, model_inputs, stir

Tiny = Callable[..., Path]


def train(source: Path, out: Path, *, bnb: BnbCfgs | None = None, **changes: Any) -> torch.Tensor:
    """Saves an adapter that changes something, and returns the logits of the model it came from."""
    spec = load_spec(source)
    base = load_model(source, spec.components, bnb_cfgs=bnb)
    model = tune_model(base, spec.components, lora_cfgs=lora_cfgs(**changes))
    stir(model)
    export_model(model, None, out, tokenizer=spec.tokenizer, processor=spec.processor)
    return logits(model, model_inputs(spec))


@pytest.mark.parametrize(
    ('family', 'kind', 'changes'),
    [
        ('qwen2', AutoModelForCausalLM, {'use_dora': True}),
        ('gemma3_text', AutoModelForCausalLM, {}),
        (
            'llava',
            AutoModelForImageTextToText,
            {'vision_lora': True, 'modules_to_save': ['multi_modal_projector'], 'use_rslora': True},
        ),
    ],
)
def test_plain_transformers_loads_the_merged_model(
    family: str, kind: Any, changes: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    source, out = tiny(family), tmp_path / 'deep' / 'merged'
    expected = train(source, tmp_path / 'adapter', **changes)
    merge_adapter(tmp_path / 'adapter', out)
    spec = load_spec(source)
    # Sums in another order differ in the last bits of float32.
    torch.testing.assert_close(logits(kind.from_pretrained(out), model_inputs(spec)), expected, atol=2e-4, rtol=1e-4)
    assert stored_keys(out) == stored_keys(source)
    assert json.loads((out / 'config.json').read_text())['architectures'] == [type(kind.from_pretrained(out)).__name__]
    reader = AutoProcessor.from_pretrained(out) if spec.processor else AutoTokenizer.from_pretrained(out)
    assert reader.chat_template == spec.renderer.template
    assert [file.name for file in out.parent.iterdir()] == ['merged']
    assert not (out / 'adapter_config.json').exists()


def test_an_adapter_over_four_bits_is_merged_in_full_precision(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip('bitsandbytes')
    source = tiny('qwen2')
    train(source, tmp_path / 'adapter', bnb=BnbCfgs(use_bnb=True))
    merge_adapter(tmp_path / 'adapter', tmp_path / 'merged')
    before = AutoModelForCausalLM.from_pretrained(source).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / 'merged').state_dict()
    from safetensors.torch import load_file

    stored = load_file(tmp_path / 'adapter' / 'adapter_model.safetensors')
    name = 'model.layers.1.mlp.up_proj'
    up, down = (stored[f'base_model.model.{name}.lora_{letter}.weight'].float() for letter in 'BA')
    # lora_alpha / r = 8 / 4, over the weights as they are stored: nothing is rounded to four bits.
    torch.testing.assert_close(after[f'{name}.weight'], before[f'{name}.weight'] + 2 * up @ down, atol=1e-6, rtol=1e-6)
    assert torch.equal(after['model.norm.weight'], before['model.norm.weight'])


def test_the_base_can_be_named(tiny: Tiny, tmp_path: Path) -> None:
    source, adapter = tiny('qwen2'), tmp_path / 'adapter'
    expected = train(source, adapter)
    file = adapter / 'adapter_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'base_model_name_or_path': str(tmp_path / 'moved')}))
    with pytest.raises(ModelError, match='moved, which does not exist'):
        merge_adapter(adapter, tmp_path / 'merged')
    merge_adapter(adapter, tmp_path / 'merged', base=str(source))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / 'merged')
    torch.testing.assert_close(logits(merged, model_inputs(load_spec(source))), expected, atol=2e-4, rtol=1e-4)


def test_the_output_folder_of_a_run_stands_for_its_adapter(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny('qwen2'), tmp_path / 'run' / 'slice_end')
    merge_adapter(tmp_path / 'run', tmp_path / 'merged')
    assert AutoModelForCausalLM.from_pretrained(tmp_path / 'merged').config.model_type == 'qwen2'


def test_a_wrong_base_is_refused_and_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny('qwen2'), tmp_path / 'adapter')
    with pytest.raises(ModelError, match="'qwen2'.*not on a 'qwen3'"):
        merge_adapter(tmp_path / 'adapter', tmp_path / 'merged', base=str(tiny('qwen3')))
    with pytest.raises(ModelError, match='unexpected are those for: model.layers.1'):
        merge_adapter(tmp_path / 'adapter', tmp_path / 'merged', base=str(tiny('qwen2', layers=1)))
    assert [path.name for path in tmp_path.iterdir()] == ['adapter']


def test_a_failed_write_leaves_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny('qwen2'), tmp_path / 'adapter')

    def half(model: Any, state: Any, folder: Path, **_: Any) -> None:
        (folder / 'config.json').write_text('{}')
        raise OSError('no space left on device')

    monkeypatch.setattr(merging, 'export_model', half)
    with pytest.raises(ModelError, match='no space left'):
        merge_adapter(tmp_path / 'adapter', tmp_path / 'merged')
    assert [path.name for path in tmp_path.iterdir()] == ['adapter']


def test_what_is_there_already_stays(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / 'adapter').mkdir()
    (tmp_path / 'adapter' / 'adapter_config.json').write_text('{"peft_type": "LORA"}')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'keep').touch()
    with pytest.raises(ModelError, match='not an empty folder'):
        merge_adapter(tmp_path / 'adapter', tmp_path / 'full')
    with pytest.raises(ModelError, match='holds no LoRA adapter'):
        merge_adapter(tiny('qwen2'), tmp_path / 'merged')


def test_a_reward_model_keeps_its_head(tiny: Tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny('qwen2'))
    base = load_model(tiny('qwen2'), spec.components, is_reward_model=True)
    model = tune_model(base, spec.components, lora_cfgs=lora_cfgs())
    stir(model)
    export_model(model, None, tmp_path / 'adapter', tokenizer=spec.tokenizer, processor=None)
    ids = spec.tokenizer('What is two and three?', return_tensors='pt').input_ids
    expected = model.get_base_model().score(base.base_model(ids).last_hidden_state[:, -1])
    merge_adapter(tmp_path / 'adapter', tmp_path / 'merged')
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / 'merged')
    torch.testing.assert_close(classifier(ids).logits[:, 0], expected, atol=2e-4, rtol=1e-4)
    merged = load_pretrained_models(tmp_path / 'merged', is_reward_model=True)[0]
    torch.testing.assert_close(merged.score.weight, classifier.score.weight)
