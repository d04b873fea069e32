"""What docs/environments.md says is so: its environment runs, its tools are called, its tables name what there is."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from align_anything.cli.leaves import find_run
from align_anything.cli.main import app
from align_anything.configs.environment import EnvironmentCfgs
from align_anything.environments import Call, Said
from align_anything.environments.base import checked_kwargs, environment_names, get_environment, make_environment
from align_anything.serve import environments
from tests.trainers.runs import lines, run

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'environments.md').read_text()
FILES = dict(re.findall(r'```python\n# (\w+\.py)\n(.*?)```', TEXT, re.DOTALL))


def cells(head: str) -> list[list[str]]:
    (body,) = re.findall(rf'^{re.escape(head)}.*\n[-|]+\n((?:\|.*\n)+)', TEXT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in body.splitlines()]


def test_the_command_trains_in_the_environment_and_tells_the_metrics(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (command,) = re.findall(r'```bash\n(deepspeed --module .*?)```', TEXT, re.DOTALL)
    (row,) = re.findall(r'```json\n(.*)\n```', TEXT)
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    (tmp_path / 'games.jsonl').write_text(f'{row}\n' * 8)
    (tmp_path / 'Qwen').mkdir()
    (tmp_path / 'Qwen' / 'Qwen2.5-0.5B-Instruct').symlink_to(tiny('qwen2'))
    shorter = command.replace('\\\n', ' ').replace('--max_new_tokens 64', '--max_new_tokens 6')
    shorter = shorter.replace('--num_generations 8', '--num_generations 2').replace('_batch_size 8', '_batch_size 4')
    _, _, module, *argv = shlex.split(shorter)
    pair, kind = find_run('text_to_text', module.rpartition('.')[2])
    more = ['--bf16', 'False', '--log_type', 'none', '--stop', '[a, e, i, o, u, s]', '--max_steps', '2']
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (ended,) = run([*argv, *more], pair=pair, algorithm=kind)
    assert ended.code == 0, ended.output
    (record, *_) = lines(tmp_path / 'output/coin/metrics.jsonl')
    named = {name for row in cells('| metric |') for name in re.findall('`([^`]+)`', row[0])}
    assert {f'train/{name}' for name in named} <= record.keys() and record['train/turns'] > 1
    assert 'No. Again?' in (tmp_path / 'output/coin/completions.html').read_text()


def test_the_tools_are_called(tmp_path: Path) -> None:
    (tmp_path / 'my_tools.py').write_text(FILES['my_tools.py'])
    world = make_environment(f'{tmp_path}/my_tools.py:Cities', {})
    (tool,) = world.tools
    assert tool['function']['parameters']['required'] == ['city']
    world.reset({'ground_truth': 717000}, 0)
    step = world.step(Said('', (Call('population', {'city': 'Oslo'}), Call('population', {'city': 'Bonn'}))))
    assert [message['content'] for message in step.observation.messages] == ['717000', "Error: KeyError: 'Bonn'"]
    assert world.step(Said('It has 717000.')).info == {'success': True}


def test_what_ships_and_what_is_set_is_named() -> None:
    told = {row[0].strip('`'): re.findall(r'`(\w+)`', row[2]) for row in cells('| name |')}
    assert sorted(told) == environment_names()
    assert {name: [*inspect.signature(get_environment(name)).parameters] for name in told} == told
    settings = {name for row in cells('| setting |') for name in re.findall('`([^`]+)`', row[0])}
    assert settings - {'max_new_tokens'} <= EnvironmentCfgs.model_fields.keys()
    assert set(re.findall(r'--(environment\w*|max_turns)', TEXT)) <= EnvironmentCfgs.model_fields.keys()


def test_the_server_takes_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r'```bash\n(align-anything serve-environment .*)\n```', TEXT)
    (tmp_path / 'my_environment.py').write_text(FILES['my_environment.py'])
    monkeypatch.chdir(tmp_path)
    served: list[str] = []
    monkeypatch.setattr(environments, 'serve_app', lambda app, bound: served.append(app.title))
    app(shlex.split(command)[1:], standalone_mode=False)
    assert served == ['environment']


def test_the_settings_are_those_of_an_environment_that_there_is() -> None:
    (block,) = re.findall(r'```yaml\n(environment: gymnasium\n.*?)```', TEXT, re.DOTALL)
    cfgs = EnvironmentCfgs(**yaml.safe_load(block))
    world = make_environment(cfgs.environment, checked_kwargs(cfgs.environment, cfgs.environment_kwargs))
    assert world.reset({}, 0).messages[0]['content'][0]['image'].size == (112, 112)
    world.close()
