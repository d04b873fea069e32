"""What docs/diffusion.md says is so: its commands run, settings and files are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import find_run
from align_anything.configs.schema import build_run_schema, groups_of
from align_anything.testing.tiny.judges import build_judge
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


def command_of(
    name: str, smaller: dict[str, str], tiny: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the command of an algorithm that has a section of its own, in sizes that a test can afford."""
    (command,) = re.findall(
        rf'```bash\n(deepspeed --module \S+\.{name} .*?)```', TEXT.split('\n## PPO\n')[1], re.DOTALL
    )
    for said, other in smaller.items():
        assert said in command
        command = command.replace(said, other)
    (folder / 'my_rewards.py').write_text(REWARDS)
    texts = [{'messages': [{'role': 'user', 'content': text}]} for text in ('a zero', 'a one', 'a two', 'a three')]
    write_rows(folder / 'prompts.jsonl', texts)
    (folder / 'stabilityai').mkdir()
    (folder / 'stabilityai' / 'stable-diffusion-3.5-medium').symlink_to(tiny('sd3'))
    _, _, module, *argv = shlex.split(command.replace('\\\n', ' '))
    pair, kind = find_run(*module.split('.')[-2:])
    assert kind.name == name
    monkeypatch.chdir(folder)
    (ended,) = run([*argv, *PRESET.split()], pair=pair, algorithm=kind)
    assert ended.code == 0, ended.output


def test_the_command_of_ppo_runs(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smaller = {f'--per_device_{what}_batch_size 8': f'--per_device_{what}_batch_size 2' for what in ('prompt', 'train')}
    command_of('ppo', {**smaller, '--rollout_steps 10': '--rollout_steps 6'}, tiny, tmp_path, monkeypatch)
    recorded = {name for record in lines(tmp_path / 'output' / 'sd3_ppo' / 'metrics.jsonl') for name in record}
    page = TEXT.split('\n## PPO\n')[1].split('\n## ')[0]
    assert '`value_loss` and `explained_variance` under `reward_critic`' in ' '.join(page.split())
    assert {f'train/reward_critic/{name}' for name in ('value_loss', 'explained_variance')} <= recorded


def test_the_command_of_nft_runs(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command_of('nft', SMALLER, tiny, tmp_path, monkeypatch)
    out = tmp_path / 'output' / 'nft'
    (section,) = re.findall(r'^- Metrics:(.*?)\n\n', TEXT, re.DOTALL | re.MULTILINE)
    recorded = {name for record in lines(out / 'metrics.jsonl') for name in record}
    assert {f'train/{name}' for name in re.findall(r'`(\w+)`', section)} <= recorded
    saved = 'pytorch_lora_weights.safetensors'
    assert (out / 'slice_end' / saved).is_file() and (out / 'slice_end' / 'ema' / saved).is_file()
    assert (out / 'previews.html').is_file() and (out / 'previews' / '00000000' / 'grid.png').is_file()


def test_the_commands_of_pipelines_run(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = TEXT.split('\n## In three commands\n')[1].split('\n## ')[0]
    (block,) = re.findall(r'```bash\n(.*?)```', page, re.DOTALL)
    further = TEXT.split('\n## Training an adapter on\n')[1].split('\n## ')[0]
    (going_on,) = re.findall(r'```bash\n(.*?)```', further, re.DOTALL)
    block += going_on
    captioned, pair_row, prompt = re.findall(r'`(\{".*?\})`', page)
    (tmp_path / 'pictures').mkdir()
    Image.new('RGB', (64, 64), 'red').save(tmp_path / 'pictures' / 'fox.png')
    (tmp_path / 'pictures' / 'metadata.jsonl').write_text(f'{captioned}\n' * 4)
    for name in ('fox.png', 'blot.png'):
        Image.new('RGB', (40, 64), 'blue' if name == 'blot.png' else 'red').save(tmp_path / name)
    (tmp_path / 'pairs.jsonl').write_text(f'{pair_row}\n' * 4)
    (tmp_path / 'prompts.jsonl').write_text(f'{prompt}\n' * 4)
    (tmp_path / 'stabilityai').mkdir()
    (tmp_path / 'stabilityai' / 'stable-diffusion-3.5-medium').symlink_to(tiny('sd3'))
    monkeypatch.chdir(tmp_path)
    smaller = {'--resolution 512': '--resolution 16', '--rollout_steps 10': '--rollout_steps 4'}
    smaller['openai/clip-vit-base-patch32'] = str(build_judge('clip', 'clip'))
    for said, other in smaller.items():
        assert said in block
        block = block.replace(said, other)
    commands = [shlex.split(line) for line in block.replace('\\\n', ' ').splitlines()]
    assert [words[2].rpartition('.')[2] for words in commands] == ['sft', 'dpo', 'grpo', 'dpo']
    for _, _, module, *argv in commands:
        pair, kind = find_run(*module.split('.')[-2:])
        short = ['--max_steps', '1', '--gradient_accumulation_steps', '1', *PRESET.split()]
        (ended,) = run([*argv, *short], pair=pair, algorithm=kind)
        assert ended.code == 0, ended.output
        saved = tmp_path / argv[argv.index('--output_dir') + 1] / 'slice_end'
        assert (saved / 'pytorch_lora_weights.safetensors').is_file()


def test_the_commands_of_editing_run(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = TEXT.split('\n## Editing\n')[1].split('\n## ')[0]
    (block,) = re.findall(r'```bash\n(.*?)```', page, re.DOTALL)
    (row,) = re.findall(r'`(\{".*?\})`', page)
    for name, colour in (('street.png', 'red'), ('winter.png', 'white')):
        Image.new('RGB', (40, 64), colour).save(tmp_path / name)
    (tmp_path / 'edits.jsonl').write_text(f'{row}\n' * 4)
    (tmp_path / 'my_rewards.py').write_text(REWARDS)
    models = {'black-forest-labs/FLUX.1-Kontext-dev': 'flux_kontext', 'Qwen/Qwen-Image-Edit': 'qwen_image_edit'}
    monkeypatch.chdir(tmp_path)
    smaller = {'--resolution 512': '--resolution 32', '--rollout_steps 10': '--rollout_steps 4'}
    smaller |= {said: str(tiny(family)) for said, family in models.items()}
    for said, other in smaller.items():
        assert said in block
        block = block.replace(said, other)
    commands = [shlex.split(line) for line in block.replace('\\\n', ' ').splitlines()]
    assert [words[2].rpartition('.')[2] for words in commands] == ['sft', 'grpo']
    for _, _, module, *argv in commands:
        pair, kind = find_run(*module.split('.')[-2:])
        short = ['--max_steps', '1', '--gradient_accumulation_steps', '1', *PRESET.split()]
        (ended,) = run([*argv, *short], pair=pair, algorithm=kind)
        assert ended.code == 0, ended.output
        saved = tmp_path / argv[argv.index('--output_dir') + 1] / 'slice_end'
        assert (saved / 'pytorch_lora_weights.safetensors').is_file()


def test_a_subject_is_mixed_with_its_class(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = TEXT.split('\n## A subject beside its class\n')[1].split('\n## ')[0]
    (command,) = re.findall(r'```bash\n(.*?)```', section, re.DOTALL)
    for folder, text in zip(('subject', 'dogs'), re.findall('"(a photo of [^"]*)"', section), strict=True):
        (tmp_path / folder).mkdir()
        for number in range(2):
            Image.new('RGB', (16, 16), (90 * number, 0, 0)).save(tmp_path / folder / f'{number}.png')
            (tmp_path / folder / f'{number}.txt').write_text(text)
    (tmp_path / 'stabilityai').mkdir()
    (tmp_path / 'stabilityai' / 'stable-diffusion-3.5-medium').symlink_to(tiny('sd3'))
    monkeypatch.chdir(tmp_path)
    command = command.replace('--resolution 512 --max_steps 500', '--resolution 16 --max_steps 2')
    _, _, module, *argv = shlex.split(command.replace('\\\n', ' '))
    pair, kind = find_run(*module.split('.')[-2:])
    short = '--gradient_accumulation_steps 2 --per_device_train_batch_size 1'.split()
    (ended,) = run([*argv, *short, *PRESET.split()], pair=pair, algorithm=kind)
    assert ended.code == 0, ended.output
    records = [record for record in lines(tmp_path / 'output' / 'subject' / 'metrics.jsonl') if 'train/loss' in record]
    counted = [(record['train/samples/subject'], record['train/samples/dogs']) for record in records]
    assert [sum(own) for own in zip(*counted, strict=True)] == [2, 2]


def test_settings_and_links_exist() -> None:
    kinds = known_algorithms().values()
    known = {
        key for kind in kinds for group in groups_of(build_run_schema(kind)).values() for key in group.model_fields
    }
    known |= {'dry_run'}
    (table,) = re.findall(r'^\| run \| here \|\n[-|]+\n((?:\|.*\n)+)', TEXT, re.MULTILINE)
    told = set(re.findall(r'`(\w+): [^`]+`', table))
    assert told and told <= known, told - known
    assert set(re.findall(r'--(\w+)', TEXT)) - {'module'} <= known
    for name in ('eval_draws', 'ema_decay', *re.findall(r'`((?:preview|old|reference)_\w+)`', TEXT)):
        assert name in known, name
    for target in re.findall(r'\]\(([^)#:]+)(?:#[\w-]*)?\)', TEXT):
        assert (ROOT / 'docs' / target).exists(), target


@pytest.mark.extended
def test_the_command_of_samples_of_several_sizes_runs(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / 'docs' / 'denoising.md').read_text().split('\n## Samples of several sizes\n')[1]
    (command,) = re.findall(r'```bash\n(deepspeed --module .*?)```', page, re.DOTALL)
    for said, other in {'--resolution 512': '--resolution 32', '8192': '64'}.items():
        assert said in command
        command = command.replace(said, other)
    rows = []
    for number, size in enumerate([(64, 64), (96, 48), (48, 96), (96, 48)]):
        Image.new('RGB', size, 'red').save(tmp_path / f'{number}.png')
        answer = [{'type': 'image', 'image': f'{number}.png'}]
        rows.append({'messages': [{'role': 'user', 'content': 'red'}, {'role': 'assistant', 'content': answer}]})
    write_rows(tmp_path / 'pictures.jsonl', rows)
    (tmp_path / 'stabilityai').mkdir()
    (tmp_path / 'stabilityai' / 'stable-diffusion-3.5-medium').symlink_to(tiny('sd3'))
    _, _, module, *argv = shlex.split(command.replace('\\\n', ' '))
    pair, kind = find_run(*module.split('.')[-2:])
    monkeypatch.chdir(tmp_path)
    (ended,) = run([*argv, *PRESET.split()], pair=pair, algorithm=kind)
    assert ended.code == 0 and 'of several sizes' in ' '.join(ended.output.split()), ended.output
