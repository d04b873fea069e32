"""The list of families: the 22 ids of lmms-finetune, every family file, and what the checkpoints themselves say."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.cli.checkpoints import listed_families
from align_anything.cli.families import NONE, Family, families, families_as_json, find_family
from align_anything.cli.main import main
from align_anything.core.errors import SettingsError
from align_anything.models import families as family_files
from align_anything.models.pretrained_model import load_spec
from align_anything.testing.tiny import KINDS

HUB_NAMES = {
    'llava-1.5-13b': 'llava-hf/llava-1.5-13b-hf',
    'llava-1.6-vicuna-7b': 'llava-hf/llava-v1.6-vicuna-7b-hf',
    'llava-next-video-7b-32k': 'llava-hf/LLaVA-NeXT-Video-7B-32K-hf',
    'llava-interleave-qwen-0.5b': 'llava-hf/llava-interleave-qwen-0.5b-hf',
    'llava-onevision-0.5b-ov': 'llava-hf/llava-onevision-qwen2-0.5b-ov-hf',
    'qwen-vl-chat': 'Qwen/Qwen-VL-Chat',
    'phi3-v': 'microsoft/Phi-3-vision-128k-instruct',
    'qwen2-vl-2b-instruct': 'Qwen/Qwen2-VL-2B-Instruct',
    'qwen2.5-vl-72b-instruct': 'Qwen/Qwen2.5-VL-72B-Instruct',
    'llama-3.2-90b-vision-instruct': 'meta-llama/Llama-3.2-90B-Vision-Instruct',
}


@pytest.fixture(scope='module')
def found() -> dict[str, Family]:
    return {family.model_type: family for family in families()}


def test_every_id_of_lmms_finetune_is_there(found: dict[str, Family]) -> None:
    ids = {name: hub for family in found.values() for name, hub in family.ids.items()}
    # 1.5: 2, interleave: 2, 1.6: 2, next-video: 3, onevision: 3, qwen-vl, phi3-v, qwen2-vl: 3, qwen2.5-vl: 3, mllama: 2
    assert len(ids) == 22 == sum(len(family.ids) for family in found.values())
    assert HUB_NAMES.items() <= ids.items()


def test_every_family_file_is_listed_with_a_checkpoint(found: dict[str, Family]) -> None:
    filed = {module.name for module in pkgutil.iter_modules(family_files.__path__)}
    assert filed <= set(found) and {found[name].rules for name in filed} == {'own file'}
    table = listed_families()
    assert all(entry.keys() <= {'ids', 'checkpoints', 'checkpoint_type', 'not_served'} for entry in table.values())


@pytest.mark.parametrize(
    'name',
    'llama qwen3_moe gemma3 llava qwen2_5_vl qwen3_vl idefics3 chameleon emu3 janus csm'.split(),
)
def test_the_list_says_what_checkpoints_say(name: str, found: dict[str, Family], tiny: Callable[..., Path]) -> None:
    assert name in KINDS
    spec, family = load_spec(tiny(name)), found[name]
    assert (family.reads, tuple(family.layouts)) == (sorted(spec.reads), spec.layouts)
    assert family.writes == sorted(spec.emits)


def test_runs_are_those_whose_media_the_family_reads(found: dict[str, Family]) -> None:
    assert 'text_image_to_text' not in found['llama'].runs and 'sft' in found['llama'].runs['text_to_text']
    assert {'text_to_text', 'text_image_to_text'} <= set(found['qwen2_vl'].runs)
    assert 'text_to_image' not in found['llama'].runs
    for name in ('chameleon', 'emu3', 'janus'):
        assert {'text_to_image', 'text_image_to_text_image', 'any_to_any'} <= set(found[name].runs)
    # It writes no text.
    assert set(found['csm'].runs) == {'text_to_audio'} and 'sft' in found['csm'].runs['text_to_audio']
    # Its class is in transformers, but its tokenizer cannot be had (docs/extending.md).
    assert found['voxtral'].rules == NONE and 'mistral-common' in found['voxtral'].note
    # It writes nothing.
    assert found['clip'].runs == {'text_to_image': ['cost_model', 'rm', 'rm_score']} and not found['clip'].writes_text
    for family in found.values():
        if family.rules == NONE:
            assert family.note and not family.runs and family.layouts is None


def test_json_and_table(
    found: dict[str, Family], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(families_as_json(list(found.values())))
    llava = next(entry for entry in content['families'] if entry['model_type'] == 'llava')
    assert llava['ids']['llava-1.5-7b'] == 'llava-hf/llava-1.5-7b-hf' and llava['reads'] == ['image']
    monkeypatch.setattr('align_anything.cli.families.families', lambda: list(found.values()))
    with pytest.raises(SystemExit):
        main(['models'])
    lines = capsys.readouterr().out.splitlines()
    assert all(sum(line.split()[:1] == [name] for line in lines) == 1 for name in found), 'a line for each'
    assert any('qwen2_vl' in line and 'text, image, video' in line for line in lines)
    for name in ('llava', 'llava-1.5-7b'):
        with pytest.raises(SystemExit):
            main(['models', name])
        told = capsys.readouterr().out.splitlines()
        # Whole on one line, so that it can be searched for.
        assert any('llava-1.5-7b' in line and 'llava-hf/llava-1.5-7b-hf' in line for line in told)
        assert any('text_image_to_text' in line and 'dpo' in line for line in told)
    with pytest.raises(SettingsError, match="no family or id is called 'lava'. Did you mean 'llava'"):
        find_family('lava')


def test_templates(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['templates', '--json'])
    templates = {entry['name']: entry for entry in json.loads(capsys.readouterr().out)['templates']}
    assert templates['Messages']['options'].keys() >= {'messages'}
    assert 'format_supervised_sample' in templates['Alpaca']['hooks'] and templates['Alpaca']['meaning']
    with pytest.raises(SystemExit):
        main(['templates'])
    assert 'PKUSafeRLHF' in capsys.readouterr().out
