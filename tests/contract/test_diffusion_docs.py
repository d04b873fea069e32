"""What docs/diffusion.md says of NFT, averages and previews is so: its command runs, settings and files are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.algorithms.nft import NFT
from align_anything.cli.leaves import find_run
from align_anything.configs.schema import build_run_schema, groups_of
from tests.trainers.denoising import REWARDS
from tests.trainers.runs import lines, run, write_rows

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'diffusion.md').read_text()
SMALLER = {
    '--r 32': '--r 2',
    '--lora_alpha 64': '--lora_alpha 4',
    '--num_generations 8': '--num_generations 2',
    '--per_device_prompt_batch_size 4': '--per_device_prompt_batch_size 2',
    '--rollout_steps 10': '--rollout_steps 2',
    '--gradient_accumulation_steps 8': '--gradient_accumulation_steps 1',
    '--preview_every 20': '--preview_every 2 --preview_steps 2',
}
PRESET = '--bf16 False --log_type none --num_workers 0 --ds_cfgs ds_z0_config.json --gradient_checkpointing False'


def test_the_command_of_nft_runs(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r'```bash\n(deepspeed --module \S+\.nft .*?)```', TEXT, re.DOTALL)
    for said, smaller in SMALLER.items():
        assert said in command
        command = command.replace(said, smaller)
    (tmp_path / 'my_rewards.py').write_text(REWARDS)
    texts = [{'messages': [{'role': 'user', 'content': text}]} for text in ('a zero', 'a one', 'a two', 'a three')]
    write_rows(tmp_path / 'prompts.jsonl', texts)
    (tmp_path / 'stabilityai').mkdir()
    (tmp_path / 'stabilityai' / 'stable-diffusion-3.5-medium').symlink_to(tiny('sd3'))
    _, _, module, *argv = shlex.split(command.replace('\\\n', ' '))
    pair, kind = find_run(*module.split('.')[-2:])
    assert kind is NFT
    monkeypatch.chdir(tmp_path)
    (ended,) = run([*argv, *PRESET.split()], pair=pair, algorithm=kind)
    assert ended.code == 0, ended.output
    out = tmp_path / 'output' / 'nft'
    (section,) = re.findall(r'^- Metrics:(.*?)\n\n', TEXT, re.DOTALL | re.MULTILINE)
    recorded = {name for record in lines(out / 'metrics.jsonl') for name in record}
    assert {f'train/{name}' for name in re.findall(r'`(\w+)`', section)} <= recorded
    saved = 'pytorch_lora_weights.safetensors'
    assert (out / 'slice_end' / saved).is_file() and (out / 'slice_end' / 'ema' / saved).is_file()
    assert (out / 'previews.html').is_file() and (out / 'previews' / '00000000' / 'grid.png').is_file()


def test_settings_and_links_exist() -> None:
    known = {key for group in groups_of(build_run_schema(NFT)).values() for key in group.model_fields}
    assert set(re.findall(r'--(\w+)', TEXT)) - {'module'} <= known
    for name in ('eval_draws', 'ema_decay', *re.findall(r'`((?:preview|old|reference)_\w+)`', TEXT)):
        assert name in known, name
    for target in re.findall(r'\]\(([^)#:]+)(?:#[\w-]*)?\)', TEXT):
        assert (ROOT / 'docs' / target).exists(), target
