"""Exports say what the model said, in the programs that they are for; what cannot be written is told before."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from align_anything.cli.main import main
from align_anything.cli.sharing.exporting import export
from align_anything.core.errors import DataError, ModelError, SettingsError
from align_anything.models.pretrained_model import load_spec
from tests.cli.test_merging import train
from tests.models.common import logits, model_inputs

Tiny = Callable[..., Path]
STAND_IN = """
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument('model', type=pathlib.Path)
parser.add_argument('--outfile', type=pathlib.Path)
parser.add_argument('--mmproj', action='store_true')
given = parser.parse_args()
if 'opt' in json.loads((given.model / 'config.json').read_text())['model_type']:
    print('INFO:hf-to-gguf:Loading model', file=sys.stderr)
    sys.exit('ERROR:hf-to-gguf:Model OPTForCausalLM is not supported')
given.outfile.write_bytes(b'GGUF' + (b'' if given.mmproj else (given.model / 'model.safetensors').read_bytes()))
"""


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Path:
    """What stands in for a checkout of llama.cpp: it writes down the weights that it was given."""
    (tmp_path / 'llama.cpp').mkdir()
    (tmp_path / 'llama.cpp' / 'convert_hf_to_gguf.py').write_text(STAND_IN)
    return tmp_path / 'llama.cpp'


def test_an_adapter_goes_alone_and_merged(tiny: Tiny, tmp_path: Path) -> None:
    from peft import PeftModel

    expected = train(tiny('qwen2'), tmp_path / 'run' / 'slice_end')
    (tmp_path / 'run' / 'slice_end' / 'state').mkdir()
    for form in ('adapter', 'merged'):
        with pytest.raises(SystemExit) as leaving:
            main(['export', str(tmp_path / 'run'), str(tmp_path / form), '--format', form])
        assert leaving.value.code == 0
    assert {file.name for file in (tmp_path / 'adapter').iterdir()} >= {'adapter_config.json'}
    assert not (tmp_path / 'adapter' / 'state').exists() and not (tmp_path / 'adapter' / 'tokenizer.json').exists()
    base = AutoModelForCausalLM.from_pretrained(tiny('qwen2'))
    inputs = model_inputs(load_spec(tiny('qwen2')))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / 'merged')
    for model in (PeftModel.from_pretrained(base, tmp_path / 'adapter'), merged):
        torch.testing.assert_close(logits(model, inputs), expected, atol=2e-4, rtol=1e-4)


def test_the_converter_of_llama_cpp_gets_the_whole_model(
    tiny: Tiny, llama_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(tiny('qwen2'), tmp_path / 'run' / 'slice_end')
    export(tmp_path / 'run', tmp_path / 'out', 'gguf', llama_cpp=llama_cpp)
    assert [file.name for file in sorted((tmp_path / 'out').iterdir())] == ['README.md', 'run.gguf']
    again = tmp_path / 'again'
    shutil.copytree(tiny('qwen2'), again)
    (again / 'model.safetensors').write_bytes((tmp_path / 'out' / 'run.gguf').read_bytes().removeprefix(b'GGUF'))
    model = AutoModelForCausalLM.from_pretrained(again)
    torch.testing.assert_close(logits(model, model_inputs(load_spec(again))), expected, atol=2e-4, rtol=1e-4)
    monkeypatch.setenv('LLAMA_CPP_ROOT', str(llama_cpp))
    export(tiny('qwen2_5_vl'), tmp_path / 'media', 'gguf')
    assert len([*(tmp_path / 'media').glob('mmproj-*.gguf')]) == 1 and len([*(tmp_path / 'media').iterdir()]) == 2
    with pytest.raises(ModelError, match='does not convert .*\n.*\n.*OPTForCausalLM is not supported'):
        export(tiny('opt'), tmp_path / 'none', 'gguf')
    assert not (tmp_path / 'none').exists()


def test_without_a_converter_the_commands_are_told(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv('LLAMA_CPP_ROOT', raising=False)
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as leaving:
        main(['export', str(tiny('qwen2')), str(tmp_path / 'out'), '--format', 'gguf'])
    assert leaving.value.code == 2 and not (tmp_path / 'out').exists()
    for words in ('no package', 'git clone', f'export {tiny("qwen2")} OUT --format gguf --llama_cpp llama.cpp'):
        assert words in caplog.text
    with pytest.raises(ModelError, match='no checkout of llama.cpp'):
        export(tiny('qwen2'), tmp_path / 'out', 'gguf', llama_cpp=tmp_path)


def test_what_cannot_be_written_is_refused_before_it_is_made(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lora = tmp_path / 'out', tmp_path / 'lora'
    lora.mkdir()
    (lora / 'pytorch_lora_weights.safetensors').touch()
    for source, form, options, error, words in (
        (tiny('qwen2'), 'ggml', {}, SettingsError, "no 'ggml'.*gguf"),
        (tiny('qwen2'), 'gguf', {'names': 'kohya', 'group_size': 3}, SettingsError, '--names is for.*\n.*--group_size'),
        (tiny('qwen2'), 'merged', {}, ModelError, 'holds no LoRA adapter'),
        (tiny('qwen2'), 'adapter', {}, ModelError, 'holds no adapter'),
        (tiny('qwen2'), 'awq', {'base': 'a/b'}, SettingsError, '--base is for adapters'),
        (lora, 'awq', {}, ModelError, 'is a pipeline, and awq is for models that write tokens'),
        (lora, 'adapter', {'names': 'kohyaa'}, SettingsError, "no 'kohyaa'.*kohya"),
        (tiny('qwen2_5_vl'), 'awq', {}, ModelError, 'only language models of text'),
        (tmp_path / 'nowhere', 'awq', {}, ModelError, 'is no folder'),
    ):
        with pytest.raises(error, match=words):
            export(source, out, form, **options)
        assert not out.exists()
    monkeypatch.setitem(sys.modules, 'auto_round', None)
    with pytest.raises(ModelError, match=r"gptq needs auto-round, of the extra 'quantize'"):
        export(tiny('qwen2'), out, 'gptq')


def of_gptq(stored: dict[str, Tensor], group: int) -> Tensor:
    """The weight `(out, in)` that GPTQ's layout stores: codes of inputs below each other, zeros less one."""
    shifts = torch.arange(0, 32, 4)
    codes = (stored['qweight'][:, None, :] >> shifts[None, :, None] & 15).flatten(0, 1)
    zeros = (stored['qzeros'][:, :, None] >> shifts & 15).flatten(1) + 1
    scales = stored['scales'].float()
    return ((codes - zeros.repeat_interleave(group, 0)) * scales.repeat_interleave(group, 0)).T


def of_awq(stored: dict[str, Tensor], group: int) -> Tensor:
    """The weight `(out, in)` that AWQ's layout stores: codes of outputs beside each other, in its order."""
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    codes, zeros = (
        (stored[name][:, :, None] >> torch.arange(0, 32, 4) & 15)[:, :, order].flatten(1)
        for name in ('qweight', 'qzeros')
    )
    scales = stored['scales'].float()
    return ((codes - zeros.repeat_interleave(group, 0)) * scales.repeat_interleave(group, 0)).T


@pytest.mark.extended
@pytest.mark.parametrize(('form', 'unpack'), [('gptq', of_gptq), ('awq', of_awq)])
def test_weights_of_four_bits_are_the_nearest(
    form: str, unpack: Callable[..., Tensor], tiny: Tiny, tmp_path: Path
) -> None:
    pytest.importorskip('auto_round')
    source, out = tiny('qwen2'), tmp_path / 'out'
    with pytest.raises(ModelError, match='groups of 128. Set --group_size 64'):
        export(source, out, form)
    export(source, out, form, group_size=32)
    before, after = load_file(source / 'model.safetensors'), load_file(out / 'model.safetensors')
    settings = json.loads((out / 'config.json').read_text())['quantization_config']
    assert (settings['quant_method'], settings['bits'], settings['group_size']) == (form, 4, 32)
    layers = [name.removesuffix('.qweight') for name in after if name.endswith('.qweight')]
    assert len(layers) == 7 * 2
    for layer in layers:
        stored = {name: after[f'{layer}.{name}'] for name in ('qweight', 'qzeros', 'scales')}
        step = stored['scales'].float().abs().repeat_interleave(32, 0).T
        difference = (unpack(stored, 32) - before[f'{layer}.weight']).abs()
        # What lies beyond the last of sixteen steps is a whole one off.
        assert (difference <= 1.1 * step).all() and (difference <= 0.51 * step).float().mean() > 0.98
        assert (difference > 0).any()
    for name in before.keys() & after.keys():
        assert torch.equal(after[name].float(), before[name].float()), name
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(source).chat_template


@pytest.mark.extended
def test_texts_to_fit_to_are_read_from_the_users_file(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip('auto_round')
    file = tmp_path / 'texts.jsonl'
    rows = [
        {'text': 'two and three ' * 40},
        {'messages': [{'role': 'user', 'content': 'What is two and three? ' * 40}]},
    ]
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows * 4))
    export(tiny('qwen2'), tmp_path / 'fitted', 'gptq', group_size=32, calibration=file)
    export(tiny('qwen2'), tmp_path / 'rounded', 'gptq', group_size=32)
    fitted, rounded = (load_file(tmp_path / name / 'model.safetensors') for name in ('fitted', 'rounded'))
    assert any(not torch.equal(fitted[name], rounded[name]) for name in fitted if name.endswith('qweight'))
    file.write_text('{"text": "a"}\nnothing\n')
    with pytest.raises(DataError, match='--calibration: line 2 of'):
        export(tiny('qwen2'), tmp_path / 'other', 'gptq', group_size=32, calibration=file)


@pytest.mark.extended
@pytest.mark.parametrize(('family', 'names'), [('sd15', 'kohya'), ('z_image', 'comfyui'), ('sd3', 'diffusers')])
def test_diffusers_loads_the_adapter_by_each_names(family: str, names: str, tmp_path: Path) -> None:
    from align_anything.models.diffusion.export import export_denoiser
    from tests.models.diffusion.cases import opened, own_sample, solvable, values, whole_pipeline
    from tests.models.diffusion.test_exports import adapted

    tiny = opened(family)
    export_denoiser(adapted(family), None, tmp_path / 'adapter', spec=tiny.spec)
    export(tmp_path / 'adapter', tmp_path / 'out', 'adapter', names=names)
    made = []
    for folder in ('adapter', 'out'):
        pipeline = whole_pipeline(tiny.folder)
        (file,) = (tmp_path / folder).glob('*.safetensors')
        pipeline.load_lora_weights(str(tmp_path / folder), weight_name=file.name)
        made.append(values(own_sample(family, solvable(pipeline, tiny.spec))))
    assert numpy.abs(made[0] - made[1]).max() <= 1
    assert numpy.abs(made[0] - values(own_sample(family, tiny.whole))).max() > 2
    export(tmp_path / 'adapter', tmp_path / 'peft', 'adapter', names='peft')
    from peft import PeftModel

    pipeline = whole_pipeline(tiny.folder)
    name = tiny.spec.denoiser
    wrapped = PeftModel.from_pretrained(getattr(pipeline, name), tmp_path / 'peft')
    setattr(pipeline, name, wrapped.merge_and_unload())
    assert numpy.abs(values(own_sample(family, solvable(pipeline, tiny.spec))) - made[0]).max() <= 1
    wrong = {'kohya': 'comfyui', 'comfyui': 'kohya', 'diffusers': 'comfyui'}[names]
    with pytest.raises(ModelError, match='names of'):
        export(tmp_path / 'adapter', tmp_path / 'none', 'adapter', names=wrong)
