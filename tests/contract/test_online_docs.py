"""What docs/online.md says is so: its command runs, and its tables name what there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import find_run
from align_anything.configs.schema import build_run_schema, groups_of
from tests.trainers.runs import lines, run

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'online.md').read_text()
ONLINE = {name: kind for name, kind in known_algorithms().items() if kind.generates and kind.trains}


@pytest.fixture(scope='module')
def metrics(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of what the command of the page records."""
    (command,) = re.findall(r'```bash\n(deepspeed --module .*?)```', TEXT, re.DOTALL)
    (code,) = re.findall(r'```python\n# my_rewards.py\n(.*?)```', TEXT, re.DOTALL)
    (row,) = re.findall(r'```json\n(.*)\n```', TEXT)
    home = tmp_path_factory.mktemp('online-docs')
    (home / 'my_rewards.py').write_text(code)
    (home / 'questions.jsonl').write_text(f'{row}\n' * 8)
    (home / 'Qwen').mkdir()
    (home / 'Qwen' / 'Qwen2.5-0.5B-Instruct').symlink_to(tiny('qwen2'))
    shorter = command.replace('\\\n', ' ').replace('--max_new_tokens 64', '--max_new_tokens 6')
    _, _, module, *argv = shlex.split(shorter)
    pair, kind = find_run('text_to_text', module.rpartition('.')[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        (ended,) = run([*argv, '--bf16', 'False', '--log_type', 'none'], pair=pair, algorithm=kind)
    assert ended.code == 0, ended.output
    records = [*lines(home / 'output/grpo/metrics.jsonl'), *lines(home / 'output/grpo/timings.jsonl')]
    return {key.removeprefix('train/') for record in records for key in record}


def cells(head: str) -> list[list[str]]:
    (body,) = re.findall(rf'^{re.escape(head)}.*\n[-|]+\n((?:\|.*\n)+)', TEXT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in body.splitlines()]


def test_the_metrics_are_recorded(metrics: set[str]) -> None:
    named = {name for row in cells('| metric |') for name in re.findall('`([^`]+)`', row[0])}
    # Of several rewards, of a critic, short for the one before, and of settings that the command has not.
    special = {name for name in named if '<' in name or '…' in name} | {'multiplier', 'mean_cost'}
    special |= {'kl_coeff', 'response_kl', 'staleness', 'seconds/generation_ahead', 'empty_steps', 'nonfinite_steps'}
    assert named - special <= metrics and {'seconds/reward', 'seconds/scoring', 'seconds/update'} <= metrics


def test_every_online_algorithm_is_described() -> None:
    described = {row[0].strip('`'): row for row in cells('| algorithm |')}
    assert described.keys() == ONLINE.keys()
    for name, (_, _, reference, trains) in described.items():
        for field in re.findall(r'`(\w+)`', reference + trains):
            assert field in ONLINE[name].model_fields, (name, field)
        assert ('critic' in trains) == (len(ONLINE[name].trains) > 1)


def test_settings_and_links_exist() -> None:
    known = {
        key
        for kind in ONLINE.values()
        for group in groups_of(build_run_schema(kind)).values()
        for key in group.model_fields
    }
    of_servers = {'host', 'port', 'group-timeout', 'max-body-mib', 'tensor-parallel-size', 'data-parallel-size'}
    assert set(re.findall(r'--(\w[\w-]*)', TEXT)) - {'module', 'dry_run'} - of_servers <= known
    for variant, settings in cells('| variant |'):
        for name in re.findall(r'`(\w+)', settings):
            assert name in ONLINE['grpo'].model_fields, (variant, name)
    for target in re.findall(r'\]\(([^)#]+)\)', TEXT):
        assert (ROOT / 'docs' / target).exists(), target
