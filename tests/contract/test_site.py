"""The site of docs/ builds without a warning, loads nothing from elsewhere, and its new pages tell what is so."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from deepspeed.launcher.runner import parse_args
from torch.distributed.run import get_args_parser

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import find_run, runs
from align_anything.cli.main import main
from align_anything.configs.schema import AlgorithmCfgs, RunCfgs, build_run_schema, groups_of
from align_anything.rollouts import vllm_server
from align_anything.trainers.pairs import PAIRS
from tests.trainers.runs import run

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
PACKAGE = '\n'.join(path.read_text() for path in (ROOT / 'align_anything').rglob('*.py'))
LOADED = re.compile(r'<(?:script|link|img|iframe|source|video|audio)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in this process, as `make docs-site` builds it in one of its own."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp('site')
    config = load_config(str(ROOT / 'mkdocs.yml'), strict=True, site_dir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        build(config)
    return folder


def test_it_builds_strictly_with_every_page_and_search(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix('.html') for path in DOCS.rglob('*.md')}
    assert pages <= {path.relative_to(site) for path in site.rglob('*.html')}
    found = json.loads((site / 'search' / 'search_index.json').read_text())['docs']
    assert len({entry['location'].partition('#')[0] for entry in found}) >= len(pages)
    reference = (site / 'api' / 'losses.html').read_text()
    assert 'align_anything.losses.dpo.sigmoid' in reference and '2305.18290' in reference


def test_its_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob('*.html'):
        canonical = re.sub(r'<link rel="canonical"[^>]*>', '', page.read_text())
        assert not LOADED.findall(canonical), page


def test_every_pair_and_algorithm_has_a_page_that_says_where_it_runs() -> None:
    known = runs()
    assert {path.stem for path in (DOCS / 'algorithms').glob('*.md')} == {*known_algorithms()}
    assert {path.stem for path in (DOCS / 'pairs').glob('*.md')} == {*PAIRS}
    for name, kind in known_algorithms().items():
        text = (DOCS / 'algorithms' / f'{name}.md').read_text()
        assert {*re.findall(r'\]\(\.\./pairs/(\w+)\.md\)', text)} == {pair for pair in known if name in known[pair]}
        assert '**When to use it:** ' in text and all(
            f'`{key}`' in text for key in {*kind.model_fields} - {*AlgorithmCfgs.model_fields}
        )


def commands(page: str) -> list[list[str]]:
    text = (DOCS / page).read_text()
    blocks = re.findall(r'```(?:bash|text)\n(.*?)```', text, re.DOTALL)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    return [shlex.split(line) for line in lines if re.match(r'(align-anything|python|deepspeed|torchrun|srun) ', line)]


def test_the_first_hour_is_one_that_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (rows,) = re.findall(r'```json\n(.*?)```', (DOCS / 'first_hour.md').read_text(), re.DOTALL)
    Path('conversations.jsonl').write_text(rows)
    Path('tiny-qwen2').symlink_to(tiny('qwen2'))
    make, *rest = commands('first_hour.md')
    assert make[1:] == ['-m', 'align_anything.testing.tiny', 'qwen2', '--out', 'tiny-qwen2']
    for command in rest:
        if command[1] == 'train':
            pair, algorithm = find_run(*command[2:4])
            (ended,) = run(command[4:], pair=pair, algorithm=algorithm)
            assert ended.code == 0, ended.output
            continue
        with pytest.raises(SystemExit) as leaving:
            main(command[1:])
        assert leaving.value.code == 0, command
    assert [command[1] for command in rest] == ['inspect', 'train', 'train', 'merge', 'push']
    assert 'model.safetensors' in capsys.readouterr().out
    for name in (
        'slice_end/adapter_config.json',
        'slice_end/README.md',
        'metrics.jsonl',
        'settings.yaml',
        'inspect.html',
    ):
        assert (tmp_path / 'output' / 'first' / name).exists(), name


def test_commands_for_several_nodes_name_runs_and_settings() -> None:
    found = commands('multi_node.md')
    (serving,), launched = ([each for each in found if (each[0] == 'python') == alone] for alone in (True, False))
    assert serving[2] == vllm_server.__name__
    assert {word[2:] for word in serving if word.startswith('--')} <= {*inspect.signature(vllm_server.serve).parameters}
    assert {command[0] for command in launched} == {'deepspeed', 'torchrun', 'srun'}
    for command in launched:
        module = next(word for word in command if word.startswith('align_anything.trainers.'))
        _, kind = find_run(*module.split('.')[2:])
        groups = groups_of(build_run_schema(kind)).values()
        known = {key for group in groups for key in group.model_fields} | {'config'}
        settings = command[command.index(module) + 1 :]
        assert {word[2:] for word in settings if word.startswith('--')} <= known
        if command[0] == 'deepspeed':
            assert parse_args(command[1:]).user_script == module
            continue
        options = {option for action in get_args_parser()._actions for option in action.option_strings}
        launcher = command[: command.index('-m')]
        assert {word for word in launcher if word.startswith('--')} <= options


def test_messages_are_those_of_the_code() -> None:
    text = (DOCS / 'faq.md').read_text()
    messages = re.findall(r'^\| `([^`]+)` \|', text, re.MULTILINE)
    assert len(messages) > 15
    plain = re.sub(r"'\s*\n\s*f?['\"]|\"\s*\n\s*f?['\"]", '', PACKAGE)
    for message in messages:
        assert message in plain, message


def test_settings_that_the_pages_name_exist() -> None:
    known = {key for group in RunCfgs.model_fields.values() for key in group.annotation.model_fields}
    for kind in known_algorithms().values():
        known |= set(kind.model_fields)
    others = {'module', 'help', 'config', 'hostfile', 'base', 'public', 'dry_run', 'out', 'resume', 'key'}
    for page in ('first_hour.md', 'memory.md', 'faq.md'):
        named = set(re.findall(r'--(\w+)', (DOCS / page).read_text()))
        assert named - others <= known | {'num_train_epochs'}, page
