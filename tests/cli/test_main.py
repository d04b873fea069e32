"""The command line itself: quick help, settings handed on untouched, errors without tracebacks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from align_anything import __version__
from align_anything.cli.leaves import find_run, runs
from align_anything.cli.main import main
from align_anything.core.errors import SettingsError

PROBE = """
import json, sys
from align_anything.cli.main import main
try:
    main(['--help'])
except SystemExit as leaving:
    assert leaving.code == 0
print(json.dumps(sorted(name for name in sys.modules if '.' not in name)))
"""


def ended(*argv: object) -> int:
    """Runs a command and returns its exit code."""
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in argv])
    return leaving.value.code


def test_help_names_the_commands_and_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, '-c', PROBE], capture_output=True, text=True, check=True, timeout=120)
    *text, modules = done.stdout.splitlines()
    for command in ('train', 'inspect', 'merge', 'models', 'templates', 'env'):
        assert any(line.strip().startswith(command) for line in text), command
    assert not {'torch', 'transformers', 'numpy', 'pydantic', 'datasets', 'peft'} & set(json.loads(modules))


def test_version_and_what_a_bug_report_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended('--version') == 0
    assert capsys.readouterr().out == f'align-anything {__version__}\n'
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    monkeypatch.setenv('HF_ENDPOINT', 'https://me:word@hub.example/models')
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    assert ended('env') == 0
    told = dict(line.split(': ', 1) for line in capsys.readouterr().out.splitlines())
    assert told['torch'] == version('torch') and told['python'].startswith(platform.python_version())
    assert told['flash-attn'] == 'not installed' and told['$OMP_NUM_THREADS'] == '7' and told['$HF_TOKEN'] == '(hidden)'
    assert told['$HF_ENDPOINT'] == 'https://hub.example/models'


def test_shells_can_complete_it() -> None:
    asked = {'_ALIGN_ANYTHING_COMPLETE': 'complete_bash', 'COMP_WORDS': 'align-anything te', 'COMP_CWORD': '1'}
    done = subprocess.run(
        [sys.executable, '-m', 'align_anything.cli'],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == ['templates']


def test_the_installed_command_is_this_one() -> None:
    project = (Path(__file__).resolve().parents[2] / 'pyproject.toml').read_text()
    assert "align-anything = 'align_anything.cli.main:main'" in project


def test_settings_reach_the_run_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from align_anything.trainers import launch

    seen = []
    monkeypatch.setattr(launch, 'launch', lambda *given: seen.append(given))
    words = ['--lr-x', '-1e-5', '--train_cfgs:lr_groups', '{a: 1}', '--epochs=3', '--flag', '--rows', '4', 'stray']
    assert ended('train', 'text_to_text', 'sft', *words) == 0
    pair, algorithm, argv = seen[0]
    assert (pair.name, algorithm.name, argv) == ('text_to_text', 'sft', words)


def test_help_of_a_run_is_that_of_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended('train', '--help') == 0
    assert 'PAIR' in capsys.readouterr().out
    assert ended('train', 'text_image_to_text', 'sft', '--help', 'all') == 0
    assert '--freeze_vision_tower' in capsys.readouterr().out
    assert ended('inspect', 'text_to_text', 'sft', '--help') == 0
    out = capsys.readouterr().out
    assert '--rows' in out and '--train_datasets' in out


def test_runs_are_the_leaves() -> None:
    assert {'text_to_text', 'text_image_to_text'} <= set(runs()) and 'sft' in runs()['text_image_to_text']
    assert find_run('text_image_to_text', 'sft')[0].reads == {'image'}
    with pytest.raises(SettingsError, match="'text_imag_to_text'. Did you mean 'text_image_to_text'"):
        find_run('text_imag_to_text', 'sft')
    with pytest.raises(SettingsError, match="no algorithm 'sfd'. Did you mean 'sft'"):
        find_run('text_to_text', 'sfd')


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['train', 'text_to_text'], "no algorithm follows 'text_to_text'"),
        (['train', '--epochs', '3', 'text_to_text', 'sft'], 'come first'),
        (['train', 'text_to_text', 'sft', '--epoch', '3'], "Did you mean 'epochs'"),
        (['inspect', 'text_to_txt', 'sft'], "Did you mean 'text_to_text'"),
        (['merge', 'no/such', 'out'], 'no/such is no folder'),
    ],
)
def test_errors_have_code_2_and_no_traceback(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(*argv) == 2
    error = capsys.readouterr().err
    assert words in error and 'Traceback' not in error
