"""What docs/generating.md says is so: its commands and code run one after the other on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.algorithms.generate import Generate
from align_anything.cli.leaves import find_run
from align_anything.configs.schema import build_run_schema, groups_of
from tests.trainers.runs import lines, run

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'generating.md').read_text()
COMMANDS = [shlex.split(block.replace('\\\n', ' ')) for block in re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL)]
REWARD, CODE = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
SHORT = {'64': '6'}


def started(words: list[str]) -> tuple[str, str, list[str]]:
    """The pair, the algorithm and the settings of a command."""
    if words[0] == 'align-anything':
        return words[2], words[1], words[3:]
    pair, name = words[2].removeprefix('align_anything.trainers.').split('.')
    return pair, name, words[3:]


@pytest.fixture(scope='module')
def home(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp('generating-docs')
    (home / 'prompts.txt').write_text('Name a bird.\nName a stone.\n')
    (home / 'my_rewards.py').write_text(REWARD)
    (home / 'Qwen').mkdir()
    (home / 'Qwen' / 'Qwen2.5-0.5B-Instruct').symlink_to(tiny('qwen2'))
    return home


def test_the_commands_run_one_after_the_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert len(COMMANDS) == 4
    for words in COMMANDS:
        pair, name, argv = started([SHORT.get(word, word) for word in words])
        own = ['--bf16', 'False', '--num_workers', '0', *(['--log_type', 'none'] if name == 'dpo' else [])]
        (ended,) = run([*argv, *own], pair=find_run(pair, name)[0], algorithm=find_run(pair, name)[1])
        assert ended.code == 0, ended.output
    one, several = (home / 'output' / name for name in ('answers', 'answers_of_several'))
    assert lines(one / 'generations.jsonl') == lines(several / 'generations.jsonl')
    scored = home / 'output' / 'best_and_worst'
    assert lines(scored / 'pairs.jsonl') and (home / 'output' / 'dpo' / 'slice_end').is_dir()
    written = {path.name for path in scored.iterdir()}
    named = {
        name for name in re.findall(r'^\| `([^`]+)` \|', TEXT, re.MULTILINE) if name.endswith(('json', 'jsonl', 'yaml'))
    }
    assert named - {'prompts.jsonl', 'skipped_samples.jsonl'} <= written
    (record, _) = lines(scored / 'generations.jsonl')
    assert {'row', 'source', 'messages', 'responses', 'best'} == record.keys()
    assert {'text', 'finish_reason', 'units', 'scores', 'score'} == record['responses'][0].keys()
    assert json.loads((scored / 'summary.json').read_text())['prompts'] == 2


def test_the_code_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    names: dict[str, object] = {}
    exec(CODE.replace("'16'", "'4', '--bf16', 'False', '--temperature', '0'"), names)
    said = names['said']
    assert ''.join(part['text'] for part in said[:-1]) == names['response'].parts[0]['text']
    assert said[-1].ids.tolist() == names['response'].ids.tolist()


def test_settings_and_links_exist() -> None:
    groups = groups_of(build_run_schema(Generate)).values()
    known = {key for group in groups for key in group.model_fields}
    assert set(re.findall(r'--(\w+)', TEXT)) - {'module', 'help', 'config'} <= known
    (table,) = re.findall(r'^\| setting of .*\n[-|]+\n((?:\|.*\n)+)', TEXT, re.MULTILINE)
    for line in table.splitlines():
        name, default = [cell.strip('` ') for cell in line.strip('|').split('|')][:2]
        field = next(group.model_fields[name] for group in groups if name in group.model_fields)
        assert {None: 'null'}.get(field.default, str(field.default)) == default
    for target in re.findall(r'\]\(([^)#]+)', TEXT):
        assert (ROOT / 'docs' / target).exists(), target
