"""docs/rewards.md says what the code does."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import shlex
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import yaml
from PIL import Image

from align_anything.configs.online import RewardCfgs
from align_anything.rewards import server
from align_anything.rewards.base import get_reward, reward_names
from tests.rewards.common import completion, served

TEXT = (Path(__file__).parents[2] / 'docs' / 'rewards.md').read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.+?)```', TEXT, re.DOTALL)


def section(name: str) -> str:
    return TEXT.split(f'## {name}\n')[1].split('\n## ')[0]


def test_the_table_lists_every_function_with_its_options() -> None:
    listed = {}
    for names, options in re.findall(r'^\| (`.+?`) \| .+ \| (.*?) ?\|$', section('Functions'), re.MULTILINE):
        listed.update({name: re.findall(r'`(\w+)`', options) for name in re.findall(r'`(\w+)`', names)})
    known = {}
    # Own files of other tests may be registered too.
    for name in (name for name in reward_names() if get_reward(name).__module__.startswith('align_anything.rewards')):
        parameters = inspect.signature(get_reward(name)).parameters.values()
        known[name] = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert listed == known


def test_options_of_rewards_on_media_are_explained() -> None:
    explained = set()
    for names in re.findall(r'^\| (`.+?`) \|', section('Rewards on media'), re.MULTILINE):
        explained |= set(re.findall(r'`(\w+)`', names))
    on_media = [get_reward(name) for name in reward_names() if 'mean_by_response' in get_reward(name).__globals__]
    options = {
        parameter.name
        for function in on_media
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert explained == options - {'missing', 'column'} and len(on_media) > 8
    assert all(f'`{name}`' in section('Rewards on media') for name in ('missing', 'column'))


def test_the_settings_of_the_example_are_those_of_a_run() -> None:
    (text,) = blocks('yaml')
    cfgs = RewardCfgs(**yaml.safe_load(text)['reward_cfgs'])
    for name, options in cfgs.reward_kwargs.items():
        assert set(options) <= set(inspect.signature(get_reward(name)).parameters)
    assert set(cfgs.reward_kwargs) <= set(cfgs.reward_functions) <= set(reward_names())


def test_the_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function, _, client = blocks('python')
    (command,), (question,) = blocks('bash'), blocks('json')
    (tmp_path / 'my_rewards.py').write_text(function)
    monkeypatch.chdir(tmp_path)
    apps = []
    monkeypatch.setattr(server, 'serve_app', lambda app, bound: apps.append((app, *bound.getsockname())))
    program, options = shlex.split(command)[:3], shlex.split(command)[3:]
    assert program == ['python', '-m', server.__name__]
    with pytest.raises(SystemExit) as ended:
        server.main(options)
    assert ended.value.code == 0
    ((app, host, port),) = apps
    assert (host, port) == ('127.0.0.1', 6000)
    with served(app) as address:
        assert httpx2.post(f'{address}/get_reward', json=json.loads(question)).json() == {'rewards': [1.0]}
        (tmp_path / 'client.py').write_text(client.replace('http://localhost:6000', address))
        assert runpy.run_path('client.py')['rewards'] == [1.0]
        assert httpx2.get(f'{address}/health').json()['reward'] == 'my_rewards.py:polite'


def test_the_example_on_pictures_works(tmp_path: Path) -> None:
    _, drawings, _ = blocks('python')
    file = tmp_path / re.match(r'# (\S+\.py)\n', drawings)[1]
    file.write_text(drawings)
    bright = runpy.run_path(str(file))['bright']
    black, white = ({'type': 'image', 'image': Image.new('RGB', (4, 4), colour)} for colour in ('black', 'white'))
    drawn = [completion(), completion(), completion()]
    messages = [{'role': 'assistant', 'content': parts} for parts in ([white], [white, black], [])]
    assert bright([replace(one, message=message) for one, message in zip(drawn, messages, strict=True)]) == [1, 0.5, 0]
