"""`--dry_run` shows what a run would do, and neither trains nor saves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

from align_anything.algorithms.base import known_algorithms
from tests.trainers.runs import IMAGE, TEXT, run, sft, succeed, text_rows, write_rows


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_rows(tmp_path / 'rows.jsonl', text_rows(10))


def plain(output: str) -> str:
    """Without colours and line breaks of the console."""
    return re.sub(r'\x1b\[[0-9;]*m', '', output)


def row_of_memory(name: str, output: str) -> list[str]:
    """The GiB of weights, gradients and optimizer; activations and the total are there too."""
    (row,) = re.findall(rf'│ {name} +│(.*)│', output)
    *held, activations, total = re.findall(r'([\d.]+) GiB', row)
    assert abs(sum(map(float, held)) + float(activations) - float(total)) < 0.003
    return held


def reads_no_weights(rank: int) -> None:
    from transformers import PreTrainedModel

    def from_pretrained(*_: object, **__: object) -> None:
        raise AssertionError('a dry run read the weights')

    PreTrainedModel.from_pretrained = from_pretrained


def test_a_text_run(tiny, rows, tmp_path):
    model = tiny('llama')
    argv = sft(tmp_path / 'run', model, rows, '--dry_run', epochs=3, gradient_accumulation_steps=2, lr_warmup_ratio=0.1)
    output = plain(succeed(argv, before=reads_no_weights))
    assert not (tmp_path / 'run').exists()

    total = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(model).parameters())
    assert 'What trains' in output and re.search(
        rf'language_model.*{total:,}.*{total:,}.*100\.0.*float32.*0\.01', output
    )
    # 10 rows, 2 x 2 in a step: 3 steps an epoch.
    assert re.search(r'samples per step.*4 = 2 × 2 accumulated × 1 ranks', output)
    assert re.search(r'optimizer steps\s*│\s*9\b', output) and re.search(r'rows\s*│\s*10\b', output)
    assert re.search(r'engine.*ZeRO stage 0, fp32, adamw_torch', output)
    # Weights, gradients and two Adam moments, four bytes each.
    assert row_of_memory('policy', output) == [f'{total * size / 2**30:.3f}' for size in (4, 4, 8)]
    assert 'reference' not in output
    (tokens,) = re.findall(r'activations: about, ([\d,]+) tokens', output)
    (shape,) = re.findall(r'input_ids\s*│ \((\d+), (\d+)\)', output)
    assert int(tokens) >= int(shape[0]) * int(shape[1]) - 1 > 0
    samples = re.findall(r'sample (\d) of 3 .*\n(\S+)', output)
    assert [number for number, _ in samples] == ['1', '2', '3']
    for _, source in samples:
        row = text_rows(10)[int(source.rpartition(':')[2]) - 1]
        marked = f'⟦{row["output"]}<|eot_id|>⟧'
        shown = output.partition(source)[2].partition('⟧')[0] + '⟧'
        assert shown.endswith(marked), shown
        assert row['instruction'] in shown.partition('⟦')[0]
    assert 'This was a dry run: nothing was trained' in output


def test_an_image_run_with_adapters_and_frozen_components(tiny, rows, tmp_path):
    Image.new('RGB', (20, 30), 'red').save(tmp_path / 'dog.png')
    path = write_rows(tmp_path / 'pictures.jsonl', [{**row, 'image': 'dog.png'} for row in text_rows(4)])
    argv = sft(tmp_path / 'run', tiny('llava'), path, '--dry_run', use_lora=True, r=4, freeze_mm_proj=True)
    output = plain(succeed(argv, 1, IMAGE, reads_no_weights))
    assert re.search(r'vision_tower\s*│[^│]*│\s*0\s*│', output) and re.search(r'mm_proj\s*│[^│]*│\s*0\s*│', output)
    assert re.search(r'<media × \d+>', output)
    assert 'pixel_values' in output
    assert not (tmp_path / 'run').exists()


@pytest.mark.extended
@pytest.mark.parametrize('algorithm', ['sft', 'grpo'])
def test_what_a_tower_that_trains_keeps_is_counted(tiny, tmp_path, algorithm):
    Image.new('RGB', (20, 30), 'red').save(tmp_path / 'dog.png')
    path = write_rows(tmp_path / 'pictures.jsonl', [{**row, 'image': 'dog.png'} for row in text_rows(4)])
    model = shutil.copytree(tiny('llava'), tmp_path / 'model')
    config = json.loads((model / 'config.json').read_text())
    # Large enough for three decimals of a GiB, of weights that are not read.
    wide = {**config['vision_config'], 'intermediate_size': 500_000}
    (model / 'config.json').write_text(json.dumps({**config, 'vision_config': wide}))
    kept, more = {}, {'reward_functions': '[format]', 'max_new_tokens': 8} if algorithm == 'grpo' else {}
    for frozen in (True, False):
        argv = sft(tmp_path / 'run', model, path, '--dry_run', freeze_vision_tower=frozen, **more)
        output = plain(succeed(argv, 1, IMAGE, reads_no_weights, algorithm=known_algorithms()[algorithm]))
        (row,) = re.findall(r'│ policy +│(.*)│', output)
        kept[frozen] = float(re.findall(r'([\d.]+) GiB', row)[3]) * 2**30
    side, patch = wide['image_size'], wide['patch_size']
    # What goes into and out of the matrices of each MLP, of each patch, in float32; told in thousandths of a GiB.
    assert kept[False] - kept[True] > 0.9 * wide['num_hidden_layers'] * (side // patch) ** 2 * 2 * 500_000 * 4


@pytest.mark.parametrize('stage', [0, 1, 2, 3])
def test_the_memory_of_one_of_two_ranks_under_each_stage(tiny, rows, tmp_path, stage):
    model = shutil.copytree(tiny('llama'), tmp_path / 'model')
    config = json.loads((model / 'config.json').read_text())
    # Large enough for three decimals of a GiB; the weights are not read, so they need not fit.
    (model / 'config.json').write_text(json.dumps({**config, 'intermediate_size': 100_000}))
    file = tmp_path / 'ds.json'
    file.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    with torch.device('meta'):
        architecture = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    total = sum(parameter.numel() for parameter in architecture.parameters())
    assert total > 35e6
    output = plain(succeed(sft(tmp_path / 'run', model, rows, '--dry_run', ds_cfgs=file, bf16=True), 2))
    # bf16: 2 bytes a weight, 2 a gradient, 12 for the float32 master and the two moments; shared by 2 ranks from
    # stage 3, 2 and 1 on.
    shares = (
        total * 2 / (2 if stage == 3 else 1),
        total * 2 / (2 if stage >= 2 else 1),
        total * 12 / (2 if stage else 1),
    )
    assert row_of_memory('policy', output) == [f'{size / 2**30:.3f}' for size in shares], output


def test_mistakes_that_only_the_model_shows_are_found_without_its_weights(tiny, rows, tmp_path):
    for key, value in {
        'lr_groups': '{q_prj: 0.1}',
        'unfreeze_patterns': '[q_prj]',
        'freeze_language_model': True,
    }.items():
        argv = sft(tmp_path / 'run', tiny('llama'), rows, '--dry_run', **{key: value})
        [ended] = run(argv, 1, TEXT, reads_no_weights)
        assert ended.code == 2 and 'Traceback' not in ended.output, ended.output


def test_an_online_run_counts_all_its_models(tiny, rows, tmp_path):
    """By name, with a line for all of them; and what cannot judge is refused."""
    argv = sft(tmp_path / 'run', tiny('llama'), rows, '--dry_run', reward_functions='[format]', max_new_tokens=8)
    output = plain(succeed(argv, before=reads_no_weights, algorithm=known_algorithms()['ppo']))
    named = {name: row_of_memory(name, output) for name in ('policy', 'reference', 'reward critic', 'all')}
    assert all(len(sizes) == 3 for sizes in named.values())
    [ended] = run([*argv, '--reward_model_name_or_path', str(tiny('llama'))], algorithm=known_algorithms()['ppo'])
    assert ended.code == 2 and 'no score head' in ended.output
    [ended] = run([*argv, '--vllm_enforce_eager', 'False'], algorithm=known_algorithms()['ppo'])
    assert ended.code == 2 and 'it means nothing without use_vllm' in ended.output


@pytest.mark.parametrize('dry', [True, False])
def test_a_limit_that_no_prompt_fits_into_is_noticed_before_weights_are_loaded(tiny, rows, tmp_path, dry):
    """And why is said row by row, what several share once."""
    argv = sft(tmp_path / 'run', tiny('llama'), rows, *(['--dry_run'] if dry else []), model_max_length=8)
    [ended] = run(argv, before=reads_no_weights)
    output = plain(ended.output)
    assert ended.code == 2 and 'Traceback' not in output
    assert f"none of the first 10 rows of '{rows}' can be encoded for this model" in output
    told = re.findall(
        r'- \S+rows\.jsonl:\d+(?: and (\d+) more)?: the prompt alone has \d+ tokens, the limit is 8', output
    )
    assert sum(1 + int(more or 0) for more in told) == 10


def test_rows_that_all_fail_alike_are_told_once(tiny, tmp_path):
    rows = [{'messages': [{'role': 'user', 'content': 'Hi.'}, {'role': 'assistant', 'content': 'No.', 'weight': 0}]}]
    path = write_rows(tmp_path / 'rows.jsonl', rows * 8)
    [ended] = run(sft(tmp_path / 'run', tiny('llama'), path, '--dry_run', template='Messages'))
    output = plain(ended.output)
    assert ended.code == 2 and output.count('nothing to train on') == 1
    assert f'- {path}:1 and 7 more: no assistant turn to train has a weight above 0' in output


def test_truncated_and_left_out_rows_are_shown(tiny, tmp_path):
    long, empty = (
        {'instruction': 'Count.', 'output': 'one two three ' * 50},
        {'instruction': 'Say nothing.', 'output': ''},
    )
    path = write_rows(tmp_path / 'rows.jsonl', [long, empty])
    argv = sft(tmp_path / 'run', tiny('llama'), path, '--dry_run', model_max_length=48)
    output = plain(succeed(argv))
    assert (
        re.search(r'truncated\s*│\s*1\b', output)
        and 'rows.jsonl:1 (truncated at model_cfgs.model_max_length)' in output
    )
    assert f'of these rows 1 are left out:\n- {path}:2: turn 1 is an empty answer.' in output
    [ended] = run([*argv, '--drop_truncated', 'True'])
    assert ended.code == 2
    assert f'- {path}:2: turn 1 is an empty answer.' in plain(ended.output)


def test_a_picture_column_that_nobody_maps_is_noticed(tiny, tmp_path):
    turns = [{'role': 'user', 'content': 'What is this?'}, {'role': 'assistant', 'content': 'A digit.'}]
    path = write_rows(tmp_path / 'rows.jsonl', [{'messages': turns, 'image_path': '0.png'}] * 8)
    [ended] = run(sft(tmp_path / 'run', tiny('llava'), path, '--dry_run', template='Messages'), 1, IMAGE)
    assert ended.code == 2 and "column 'image_path', which nobody reads" in plain(ended.output).replace('\n', ' ')
