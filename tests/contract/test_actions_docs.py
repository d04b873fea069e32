"""What docs/actions.md says is so: its code runs, its commands are understood, its defaults are those in force."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from align_anything.algorithms.saferlhf import SafeRLHF
from align_anything.cli.leaves import find_run
from align_anything.core.actions import ActionSpace
from align_anything.environments import Said
from align_anything.environments.base import get_environment
from align_anything.environments.demonstrations import write_demonstrations
from align_anything.trainers.launch import settings_of
from tests.trainers.runs import lines

TEXT = (Path(__file__).resolve().parents[2] / 'docs' / 'actions.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
COMMANDS = re.findall(r'deepspeed --module (\S+) \\\n(.*?)(?=deepspeed|```)', TEXT, re.DOTALL)


def test_an_action_becomes_codes_and_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [block for block in BLOCKS if 'arm =' in block]
    exec(compile(code, 'actions.md', 'exec'), {})
    assert capsys.readouterr().out.startswith('[[192], [128], [255]] [[')


def test_the_environment_is_demonstrated(tmp_path: Path) -> None:
    (code,) = [block for block in BLOCKS if 'class Switch' in block]
    (tmp_path / 'switch.py').write_text(code)
    name = f'{tmp_path}/switch.py:Switch'
    write_demonstrations(name, {}, tmp_path, 2, prompts=1)
    first, second = lines(tmp_path / 'demonstrations.jsonl')
    assert [row['messages'][1]['content'][0]['action'] for row in (first, second)] == ['up', 'down']
    assert get_environment(name).actions == ActionSpace(names=('up', 'down'))
    assert lines(tmp_path / 'prompts.jsonl') == [{'prompt': 'Turn it up.', 'seed': 2}]
    assert get_environment(name)().reset({}, 0) is not None and Said('').actions is None


@pytest.mark.parametrize(('module', 'argv'), COMMANDS)
def test_a_command_is_understood(module: str, argv: str) -> None:
    _, _, pair, name = module.split('.')
    settings_of(*find_run(pair, name), shlex.split(argv.replace('\\\n', ' ')), {})


def test_the_defaults_for_events_are_those_in_force() -> None:
    told = SafeRLHF.of_events
    table = TEXT.split('| setting | costs of an environment')[1].split('\n\n')[0]
    assert f'| `threshold` | {told["threshold"]},' in table
    assert f'{told["lambda_init"]}, {told["lambda_max"]:g} | 10, 20' in table and f'`{told["lambda_update"]}`' in table
    plain = SafeRLHF()
    assert (plain.threshold, plain.lambda_init, plain.lambda_max) == (-0.5, 10, 20)
