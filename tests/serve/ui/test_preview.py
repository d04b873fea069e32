"""What the page shows of a run is what would be run, with the errors of the command."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from align_anything.core.errors import SettingsError
from align_anything.serve.ui.markup import log_html, problems_html, table_html, verdict_html
from align_anything.serve.ui.paths import Root
from align_anything.serve.ui.preview import Asked, preview, shell
from align_anything.trainers.launch import resolved_of
from align_anything.trainers.leaves import find_run

SETTINGS = [
    *('--model_name_or_path', 'tiny', '--train_datasets', 'a b.jsonl', 'c.jsonl', '--train_template', 'Messages'),
    *('--output_dir', 'output/run', '--learning_rate', '1e-4', '--use_lora', 'True'),
    *('--lr_groups', '{mm_proj: 1e-3}', '--log_run_name', "it's"),
]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.chdir(tmp_path)
    return Root(tmp_path)


def test_the_command_and_the_file_give_the_same_settings(root: Root) -> None:
    asked = Asked('text_image_to_text', 'sft', SETTINGS, 2)
    made = preview(asked, root)
    assert made.problems == () and made.output_dir == 'output/run'
    typed = shlex.split(shell(made.command).replace('\\\n', ''))
    module = 'align_anything.trainers.text_image_to_text.sft'
    assert typed == ['deepspeed', '--num_gpus', '2', '--module', module, *SETTINGS]
    assert len(shell(made.command).splitlines()) == 1 + sum(word.startswith('--') for word in SETTINGS)
    (root.folder / 'own.yaml').write_text(made.yaml)
    run = find_run('text_image_to_text', 'sft')
    by_file = resolved_of(*run, ['--config', 'own.yaml'], os.environ)
    assert by_file.cfgs == resolved_of(*run, SETTINGS, os.environ).cfgs
    again = preview(Asked('text_image_to_text', 'sft', ['--config', 'own.yaml', '--epochs', '2']), root)
    assert 'epochs: 2' in again.yaml and 'use_lora: true' in again.yaml
    assert any('learning_rate' not in note for note in made.notes) or made.notes == ()


def test_errors_are_those_of_the_command_all_at_once(root: Root) -> None:
    words = [*SETTINGS[2:], '--epoch', '3', '--seed', '-1']
    with pytest.raises(SettingsError) as caught:
        resolved_of(*find_run('text_to_text', 'sft'), words, os.environ)
    made = preview(Asked('text_to_text', 'sft', words), root)
    assert list(made.problems) == caught.value.problems and len(made.problems) > 2 and made.yaml == ''
    shown = problems_html(made.problems)
    assert '&#x27;epochs&#x27;' in shown and shown.count('<li>') == len(made.problems)


def test_secrets_stay_out_of_the_file(root: Root) -> None:
    made = preview(Asked('text_to_text', 'sft', [*SETTINGS, '--train_optional_args', '{token: hf_secret}']), root)
    assert not made.problems and 'hf_secret' not in made.yaml


@pytest.mark.parametrize(
    'words',
    [
        ['--output_dir', '/elsewhere/run'],
        ['--output_dir=../run'],
        ['--ds_cfgs', '/etc/hostname'],
        ['--config', '/etc/hostname'],
        ['--config=../own.yaml'],
        ['--train_template', '../own.py:Mine'],
        ['--train_template_kwargs', '{image_folder: /etc}'],
        ['--train_optional_args.data_dir', '../x'],
        ['--help'],
    ],
)
def test_paths_that_lead_out_are_refused_before_they_are_opened(words: list[str], root: Root) -> None:
    name = words[0].partition('=')[0]
    given = [word for at, word in enumerate(SETTINGS) if name not in SETTINGS[max(0, at - 1) : at + 1]]
    problems = preview(Asked('text_to_text', 'sft', [*given, *words]), root).problems
    assert any('lies outside of' in problem or 'leave --help out' in problem for problem in problems), problems


def test_files_do_not_lead_out_either_and_the_environment_may(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.folder / 'own.yaml').write_text('logger_cfgs:\n  cache_dir: /elsewhere\n')
    asked = Asked('text_image_to_text', 'sft', [*SETTINGS, '--config', 'own.yaml'])
    assert 'logger_cfgs.cache_dir: /elsewhere lies outside' in preview(asked, root).problems[0]
    monkeypatch.setenv('ALIGN_ANYTHING__LOGGER_CFGS__CACHE_DIR', '/elsewhere')
    assert preview(Asked('text_image_to_text', 'sft', SETTINGS), root).problems == ()


def test_what_programs_and_data_say_is_shown_as_text() -> None:
    evil = '<img src=x onerror=alert(1)>'
    made = [log_html(evil), problems_html([evil], [evil]), table_html([{'a': evil}]), verdict_html(f'Fits: {evil}')]
    for shown in made:
        assert shown and '<img' not in shown
    said = 'x\nDoes not fit: about 9 GiB\n  --bf16 True: about 5 GiB\nEven so it does not fit: x\nmore'
    assert 'bad' in verdict_html(said) and '--bf16 True' in verdict_html(said) and 'more' not in verdict_html(said)
    assert verdict_html('nothing of it') == ''
