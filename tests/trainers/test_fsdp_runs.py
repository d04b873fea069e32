"""Whole runs on FSDP2: the weights of runs on DeepSpeed, resumed by each other, and what it cannot do said early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from align_anything.algorithms.sft import SFT
from align_anything.cli.leaves import find_run
from tests.harness.pairwise import first_of
from tests.invariants.runs import assembled, fork, settings, zero_file
from tests.models.mixed import MEDIA, first_turn
from tests.trainers import denoising
from tests.trainers.runs import lines, run, sft, succeed, text_rows, warm, weights, write_rows
from tests.trainers.test_resume import dies_in_step, killed

REWARD = """
def brief(completions):
    return [float(item.finished) - item.length / 20 for item in completions]
"""
Tiny = Callable[..., Path]
FSDP: dict[str, Any] = {'engine': 'fsdp', 'ds_cfgs': None}
# Wide, or Adam would make full steps out of the rounding of gradients that are zero.
WIDE = {'adam_epsilon': 1e-3}
LORA = {'use_lora': True, 'r': 4, 'lora_dropout': 0.0}
PREFERENCE = {'template': 'Preference'}
ONLINE = {
    'num_generations': 3,
    'per_device_prompt_batch_size': 2,
    'per_device_train_batch_size': 4,
    'update_iters': 2,
    'max_new_tokens': 6,
    'max_skipped_ratio': 0.5,
    'max_steps': 4,
}


def alike(one: Path, other: Path, exact: float = 1e-3, model: str = 'slice_end') -> None:
    expected, found = weights(one / model), weights(other / model)
    assert expected and found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=exact, atol=exact / 4, msg=lambda text, n=name: f'{n}: {text}'
        )
    told = [lines(folder / 'metrics.jsonl') for folder in (one, other)]
    for first, second in zip(*told, strict=True):
        for key in ('train/loss', 'train/tokens', 'train/grad_norm', 'train/learning_rate'):
            if key in first or key in second:
                assert second[key] == pytest.approx(first[key], rel=10 * exact, abs=1e-6), key


def test_a_run_ends_where_one_on_deepspeed_does(tiny: Tiny, tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / 'rows.jsonl', text_rows(7)), tiny('llama')
    succeed(sft(tmp_path / 'one', model, rows, per_device_train_batch_size=4, **WIDE))
    written = succeed(sft(tmp_path / 'two', model, rows, **FSDP, **WIDE), ranks=2)
    assert 'in force: FSDP2 over 2 layers, weights gathered for each pass, fp32, optimizer adamw_torch' in written
    alike(tmp_path / 'one', tmp_path / 'two')
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / 'two' / 'slice_end')
    saved = weights(tmp_path / 'two' / 'slice_end')
    assert all(torch.equal(tensor, reloaded.state_dict()[name]) for name, tensor in saved.items())


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    'adapters': ('llama', 'sft', {**LORA, 'gradient_checkpointing': True}),
    'adapters in bf16': ('opt', 'sft', {**LORA, 'bf16': True}),
    'kept gathered': ('gemma3n', 'sft', {'fsdp_reshard_after_forward': False}),
    'offloaded': ('qwen2', 'sft', {'fsdp_cpu_offload': True}),
    'experts': ('qwen3_moe', 'sft', {'gradient_accumulation_steps': 2}),
    'shared rows': ('llama', 'sft', {'layout': 'packed', 'sequence_parallel_size': 2}),
    'a reference': ('llama', 'dpo', PREFERENCE),
    'a reference under adapters': ('llama', 'dpo', {**PREFERENCE, **LORA}),
    'a score head': ('llama', 'rm', PREFERENCE),
    'rollouts': ('qwen2', 'grpo', {**ONLINE, 'beta': 0.1}),
    'a critic': ('qwen2', 'ppo', {**ONLINE, 'num_generations': None, 'critic_lr': 1e-3}),
}


@pytest.mark.parametrize('kind', first_of(KINDS, 'rollouts'))
def test_every_kind_of_run_ends_where_one_on_deepspeed_does(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    family, name, changes = KINDS[kind]
    pairs = [
        {**row, 'prompt': row['instruction'], 'chosen': row['output'], 'rejected': f'fish {row["output"]}'}
        for row in text_rows(14)
    ]
    rows = write_rows(tmp_path / 'rows.jsonl', pairs)
    (tmp_path / 'rewards.py').write_text(REWARD)
    if 'max_new_tokens' in changes:
        changes = {**changes, 'reward_functions': f'[{tmp_path}/rewards.py:brief]'}
    algorithm = find_run('text_to_text', name)[1]
    common = {**WIDE, 'max_steps': 4, **changes}
    ours = {key: value for key, value in common.items() if not key.startswith('fsdp')}
    succeed(
        sft(tmp_path / 'one', tiny(family), rows, **{**ours, 'ds_cfgs': 'ds_z2_config.json'}), 2, algorithm=algorithm
    )
    succeed(sft(tmp_path / 'two', tiny(family), rows, **common, **FSDP), 2, algorithm=algorithm)
    alike(tmp_path / 'one', tmp_path / 'two', 2e-2 if common.get('bf16') else 1e-3)


@pytest.mark.extended
@pytest.mark.parametrize('family', ['llava', 'qwen2_vl', 'gemma3', 'qwen2_audio'])
def test_models_that_see_and_hear(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """Two steps of two ranks, one of which has rows of text alone."""
    warm()
    folder, zero = tiny(family), zero_file(tmp_path, 0)

    def work(rank: int, ranks: int, changes: dict[str, Any]) -> Any:
        cfgs = settings(folder, family, zero, **changes)
        if changes:
            cfgs = cfgs.model_copy(update={'train_cfgs': cfgs.train_cfgs.model_copy(update={'engine': 'fsdp'})})
        run = assembled(cfgs, family)
        examples = [run.policy.collate.spec.encode(first_turn(kinds)) for kinds in (MEDIA[family], ())]
        own = examples[rank : rank + 1] if ranks == 2 else examples
        losses = [run.train_step([run.policy.collate([each]) for each in own], SFT()).loss for _ in range(2)]
        return losses, run.full_state_dict(run.policy.model)

    [(expected, whole)] = fork(work, 1, 1, {})
    (found, state), _ = fork(work, 2, 2, {'gradient_checkpointing': True})
    assert found == pytest.approx(expected, rel=1e-4)
    for name, tensor in whole.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f'{n}: {text}')


PICTURES = {'full': ('sd3', 'sft', {'ema_decay': 0.5}), 'adapters': ('sd3', 'grpo', LORA), 'unet': ('sd15', 'sft', {})}


@pytest.mark.extended
@pytest.mark.parametrize('kind', PICTURES)
def test_denoisers(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    family, name, changes = PICTURES[kind]
    rows = denoising.write_digits(tmp_path)
    make = denoising.online if name == 'grpo' else denoising.offline
    common = {**WIDE, 'max_steps': 2, **changes}
    for output, engine in (('one', {}), ('two', FSDP)):
        argv = make(tmp_path / output, tiny(family), rows, **{**common, **engine})
        succeed(argv, 2, denoising.PICTURES, algorithm=denoising.named(name))
    inner = 'slice_end' if 'use_lora' in changes else f'slice_end/{"unet" if family == "sd15" else "transformer"}'
    alike(tmp_path / 'one', tmp_path / 'two', model=inner)
    if 'ema_decay' in changes:
        alike(tmp_path / 'one', tmp_path / 'two', model='slice_end/ema/transformer')


@pytest.mark.extended
@pytest.mark.parametrize('first', ['deepspeed', 'fsdp'])
def test_a_killed_run_goes_on_under_the_other_engine(first: str, tiny: Tiny, tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / 'rows.jsonl', text_rows(12)), tiny('llama')
    engines: dict[str, dict[str, Any]] = {'deepspeed': {'ds_cfgs': 'ds_z2_config.json'}, 'fsdp': FSDP}
    other = 'fsdp' if first == 'deepspeed' else 'deepspeed'
    shape = {**WIDE, 'per_device_train_batch_size': 1, 'gradient_accumulation_steps': 2, 'epochs': 2}
    shape |= {'save_interval': 2, 'save_total_limit': 9}
    succeed(sft(tmp_path / 'whole', model, rows, **shape, **engines[first]), 2)
    killed(sft(tmp_path / 'cut', model, rows, **shape, **engines[first]), dies_in_step(4))
    written = succeed(sft(tmp_path / 'cut', model, rows, '--resume', 'auto', **shape, **engines[other]), 2)
    assert 'slice_2 after step 2 of 6' in written
    assert not (tmp_path / 'cut' / '.resumed_state').exists()
    alike(tmp_path / 'whole', tmp_path / 'cut')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'ds_cfgs': 'ds_z2_config.json'}, 'FSDP2 reads no DeepSpeed file'),
        ({**FSDP, 'fp16': True}, 'FSDP2 scales no loss'),
        ({**FSDP, 'optimizer': 'deepspeed_fused_adam'}, 'does not step on shards'),
        ({**FSDP, 'optimizer': 'adamw_8bit'}, 'which FSDP2 does not shard'),
        ({**FSDP, 'use_bnb': True, 'load_in_4bit': True}, 'FSDP2 shards no quantised weights'),
        ({'engine': 'deepspeed', 'fsdp_cpu_offload': True}, 'without engine: fsdp'),
    ],
)
def test_what_means_nothing_on_the_other_engine_is_said(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(2))
    [ended] = run(sft(tmp_path / 'run', tmp_path, rows, **{'engine': 'fsdp', **changes}))
    assert ended.code == 2 and words in ' '.join(ended.output.split())
