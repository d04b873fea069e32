"""Tiny checkpoints: plain transformers loads them, the same seed makes the same files, no folder is overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from align_anything.core.errors import ModelError
from align_anything.models.codecs.base import codec_rules
from align_anything.testing.tiny import KINDS, build
from tests.harness.fresh import python
from tests.models.samples import CODED, END, FAMILIES, FRAMED, IMAGE, UNTAUGHT, WIDER, load, picture, single, user

Tiny = Callable[[str], Path]


def test_the_tests_know_every_family() -> None:
    assert {*FAMILIES, *WIDER, *CODED, *FRAMED, *UNTAUGHT} == set(KINDS)


@pytest.mark.parametrize('family', FAMILIES)
def test_plain_transformers_loads_and_generates_up_to_the_end_of_a_turn(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    kind = AutoModelForImageTextToText if family in IMAGE else AutoModelForCausalLM
    model, report = kind.from_pretrained(tiny(family), output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys']
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    end = spec.tokenizer.convert_tokens_to_ids(END[family])
    assert end in model.generation_config.eos_token_id and end == spec.renderer.end_of_turn_id
    assert set(model.generation_config.eos_token_id) <= set(spec.stop_token_ids)
    prompt = spec.encode_prompt([user(picture(56, 56), 'Hi')] if family in IMAGE else [user('Hi')])
    tensors = {name: tensor[None] for name, tensor in prompt.token_tensors.items()}
    ids = prompt.ids[None]
    generated = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, **tensors, **prompt.media
    )
    assert ids.shape[1] < generated.shape[1] <= ids.shape[1] + 3


@pytest.mark.parametrize('family', ['qwen2', 'gemma3', 'llava'])
def test_the_same_seed_makes_the_same_weights_and_leaves_the_callers_randomness_alone(
    family: str, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    folders = [build(family, tmp_path / str(number), seed=seed) for number, seed in enumerate((0, 0, 1))]
    assert torch.equal(torch.rand(1), expected)
    first, same, other = (load_file(folder / 'model.safetensors') for folder in folders)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    names = ('tokenizer.json', 'chat_template.jinja', 'generation_config.json')
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_tokenizer_comes_back_unchanged_and_knows_every_byte(family: str, tiny: Tiny, tmp_path: Path) -> None:
    words = 'Zwölf Boxkämpfer\n\njagen 12 Ameisen 🦊 — fine.'
    tokenizer = AutoTokenizer.from_pretrained(tiny(family))
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(words, add_special_tokens=False)['input_ids']
    assert AutoTokenizer.from_pretrained(tmp_path)(words, add_special_tokens=False)['input_ids'] == ids
    assert tokenizer.decode(ids) == words


def test_sizes_and_corpus_are_in_force(tmp_path: Path) -> None:
    corpus = ['abracadabra abracadabra simsalabim'] * 3
    folder = build(
        'llava',
        tmp_path / 'out',
        hidden=96,
        layers=3,
        vocab=300,
        image_size=84,
        vision_hidden=64,
        vision_layers=3,
        corpus=corpus,
    )
    spec = load(folder)
    text, vision = spec.config.text_config, spec.config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (96, 3, 3)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size) == (64, 3, 84)
    # 84 / 14 = 6 patches a side.
    assert len(spec.dummy('image')) == 36
    # 256 bytes and what the corpus is made of, not what the built-in texts are made of.
    ids = spec.tokenizer('abracadabra', add_special_tokens=False)['input_ids']
    assert len(ids) == 1 < len(spec.tokenizer('picture', add_special_tokens=False)['input_ids'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'hidden': 48}, 'hidden 48 is no multiple of 32'),
        ({'heads': 5}, 'hidden 64 is no multiple of 5'),
        ({'image_size': 30}, 'image_size 30 is no multiple of 28'),
        ({'vision_layers': 1}, 'vision_layers at least 2'),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        build('llava', tmp_path / 'out', **arguments)
    assert not (tmp_path / 'out').exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'mine.txt').write_text('keep me')
    with pytest.raises(ModelError, match='is not an empty folder'):
        build('llama', tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_an_unknown_family_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Did you mean 'llava_next'"):
        build('llava-nxt', tmp_path / 'out')


def test_the_command_line_builds_and_says_where(tmp_path: Path) -> None:
    from align_anything.testing.tiny.__main__ import main

    assert main(['llama', '--out', str(tmp_path / 'a'), '--hidden', '32', '--layers', '1']) == 0
    assert load(tmp_path / 'a').config.hidden_size == 32
    assert main(['llama', '--out', str(tmp_path / 'a')]) == 1


def test_the_command_line_builds_what_models_are_put_together_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from align_anything.testing.tiny.__main__ import main

    assert main(['siglip', '--out', str(tmp_path / 'encoder'), '--seed', '1']) == 0
    assert json.loads((tmp_path / 'encoder' / 'config.json').read_text())['model_type'] == 'siglip_vision_model'
    assert main(['janus_vqgan', '--out', str(tmp_path / 'codec')]) == 0
    assert codec_rules(tmp_path / 'codec').kind == 'image'
    assert main(['janus_vqgan', '--out', str(tmp_path / 'codec')]) == 1
    with pytest.raises(SystemExit):
        main(['siglip', '--out', str(tmp_path / 'other'), '--hidden', '64'])
    assert '--hidden is an option of models' in capsys.readouterr().err


def test_the_module_runs(tmp_path: Path) -> None:
    module = "import runpy; runpy.run_module('align_anything.testing.tiny', run_name='__main__', alter_sys=True)"
    done = python(module, 'qwen2', '--out', str(tmp_path / 'a'), folder=tmp_path)
    # Libraries may say something of their own first.
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(tmp_path / 'a'), done.stderr
    assert load(tmp_path / 'a').encode(single()).prompt.ids.numel() > 0
