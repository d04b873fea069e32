"""Dockerfile and the files for `docker compose`: what they name exists, and their commands run without an engine."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from align_anything.cli.main import app
from align_anything.configs.schema import RunCfgs
from align_anything.serve.settings import Serve
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import find_pair
from tests.contract.test_style import ROOT, tracked
from tests.harness.image import archive, instructions_of, view, why_no_view

INSTRUCTIONS = instructions_of((ROOT / 'Dockerfile').read_text())
COMPOSE = yaml.safe_load((ROOT / 'compose.yaml').read_text())
GPU = yaml.safe_load((ROOT / 'compose.gpu.yaml').read_text())
PAGE = (ROOT / 'docs' / 'docker.md').read_text()
SERVICES = COMPOSE['services']
HOSTS = re.compile(r'https?:|index-url|pypi|proxy|registry', re.IGNORECASE)


def arguments_of(name: str) -> list[str]:
    return [arguments for known, arguments in INSTRUCTIONS if known == name]


def copied(arguments: str) -> list[Path]:
    """The files of the repository that a COPY names. Each must be there, and go where it is here."""
    *sources, place = [word for word in shlex.split(arguments) if not word.startswith('--')]
    files, found = tracked(), []
    for source in sources:
        named = [file for file in files if source == '.' or ROOT / source in (file, *file.parents)]
        assert named, f'{source} is not there'
        assert place in ('.', './') or [place] == sources
        found += named
    return found


def test_the_image_has_a_named_base_and_files_that_exist() -> None:
    names = [name for name, _ in INSTRUCTIONS]
    assert {*names} <= {'FROM', 'RUN', 'WORKDIR', 'USER', 'COPY', 'ARG', 'ENV', 'CMD'}
    assert names[0] == 'FROM' and re.fullmatch(r'python:3\.\d+-slim-\w+', INSTRUCTIONS[0][1])
    assert not any(HOSTS.search(arguments) for _, arguments in INSTRUCTIONS)
    for arguments in arguments_of('RUN'):
        subprocess.run(['bash', '-n', '-c', arguments], check=True)
    assert all(copied(arguments) for arguments in arguments_of('COPY'))
    assert arguments_of('USER') == ['align'] and names.index('USER') < names.index('COPY')
    with pytest.raises(AssertionError, match='nothing is not there'):
        copied('nothing ./')


def command_of(service: dict[str, Any]) -> list[str]:
    """The words of a service's command, with the values that its variables have by default."""
    return shlex.split(re.sub(r'\$\{\w+:-([^}]*)\}', r'\1', service['command']))


@pytest.mark.parametrize('name', SERVICES)
def test_a_service_is_reached_from_this_machine_at_the_port_that_it_listens_at(name: str) -> None:
    service = SERVICES[name]
    argv = command_of(service)
    assert argv[argv.index('--host') + 1] == '0.0.0.0', 'or Docker itself would not reach it'
    here, outside, inside = service['ports'][0].split(':')
    assert here == '127.0.0.1' and outside == inside == argv[argv.index('--port') + 1]
    assert f'`{name}` | <http://127.0.0.1:{outside}' in PAGE
    for volume in service['volumes']:
        source, place = volume.split(':')
        assert source.startswith('./') or source in COMPOSE['volumes']
        assert place in ' '.join(arguments_of('RUN')), 'made there, or it would be of root'
    assert service['build'] == '.'
    assert not any('=' in variable for variable in service['environment']), 'no secret in a file'


def test_the_server_has_settings_that_there_are() -> None:
    program, command, *argv = command_of(SERVICES['server'])
    assert (program, command) == ('align-anything', 'serve')
    own = settings_of(find_pair('any_to_any'), Serve, argv, {})
    assert own.cfgs.vllm_cfgs.use_vllm and own.algorithm.host == '0.0.0.0'
    variables = {name for service in SERVICES.values() for name in service['environment']}
    assert {*re.findall(r'`([A-Z_]+)`', PAGE)} == {'MODEL', *variables}


def test_the_web_page_has_options_that_there_are() -> None:
    program, command, *argv = command_of(SERVICES['ui'])
    known = typer.main.get_command(app).commands
    assert program == 'align-anything'
    known[command].make_context(command, argv)
    with pytest.raises(Exception, match='No such option'):
        known[command].make_context(command, ['--nothing', 'x'])


def test_what_is_other_on_gpus_is_of_the_same_services() -> None:
    assert GPU['services'].keys() == SERVICES.keys()
    known = {arguments.partition('=')[0] for arguments in arguments_of('ARG')}
    for name, service in GPU['services'].items():
        assert {*service} <= {'image', 'build', 'deploy'} and {*service['build']['args']} <= known
        assert service['image'] != SERVICES[name]['image'], 'another image is kept beside it'


def test_the_page_names_files_and_settings_that_there_are() -> None:
    for file in re.findall(r'-f (\S+)', PAGE):
        assert (ROOT / file).exists()
    module, own = re.search(r'deepspeed --module (\S+) \\\n(.*)', PAGE).groups()
    assert (ROOT / module.replace('.', '/')).with_suffix('.py').exists()
    known = {key for group in RunCfgs.model_fields.values() for key in group.annotation.model_fields} | {'config'}
    assert {*re.findall(r'--(\w+)', own)} <= known


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_commands_of_the_image_run() -> None:
    if why := why_no_view(INSTRUCTIONS[0][1]):
        pytest.skip(f'nothing stands in for the base image here: {why}')
    with view() as image:
        for instruction in INSTRUCTIONS:
            image.obey(instruction, lambda arguments: archive(copied(arguments), ROOT))
        assert image.run('id --user --name; pwd').split() == ['align', '/app']
        image.run('touch /workspace/mine /home/align/.cache/huggingface/mine')
        assert 'serve' in image.run('align-anything --help')
        image.run('python -m align_anything.testing.tiny qwen3 --out /workspace/tiny')
        argv = command_of(SERVICES['server'])
        argv[argv.index('--model_name_or_path') + 1] = '/workspace/tiny'
        told = image.run(f'{shlex.join(argv)} --dry_run')
        assert 'vllm.entrypoints.openai.api_server --model /workspace/tiny' in told
