"""What docs/robot_data.md says is so: its row is an episode, its commands run, its tables name what there is."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from align_anything.algorithms.sft import SFT
from align_anything.cli.main import main
from align_anything.configs.data import DataCfgs
from align_anything.datasets.formatters.base import get_template, make_formatter
from align_anything.testing.episodes import episodes, write_lerobot
from align_anything.trainers.pairs import PAIRS
from tests.trainers.runs import lines, run

TEXT = (Path(__file__).resolve().parents[2] / 'docs' / 'robot_data.md').read_text()


def cells(head: str) -> list[list[str]]:
    (body,) = re.findall(rf'^{re.escape(head)}.*\n[-|]+\n((?:\|.*\n)+)', TEXT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in body.splitlines()]


def test_the_row_is_an_episode() -> None:
    (row,) = re.findall(r'```json\n(.*)\n```', TEXT)
    turns, meta = make_formatter('Steps').format_supervised_sample(json.loads(row))
    assert [turn['role'] for turn in turns] == ['user', 'assistant'] * 2 and turns[2]['state'] == {'arm': (0.3, 0.4)}
    assert meta == {'cameras': ['front', 'wrist'], 'rewards': [0, 1], 'costs': [0, 0], 'success': True, 'seed': 7}


def test_templates_and_options_exist() -> None:
    for names, *_ in cells('| template |'):
        for name in re.findall('`([^`]+)`', names):
            assert get_template(name)
    for options, templates, _ in cells('| option |'):
        named = re.findall('`([^`]+)`', templates) or ['Steps', 'Chores', 'LeRobot', 'Libero', 'Aloha']
        for template in named:
            assert {*re.findall('`([^`]+)`', options)} <= {*get_template(template).option_defaults()}
    for keys, _ in cells('| `data_cfgs` |'):
        assert {*re.findall('`([^`]+)`', keys)} <= {*DataCfgs.model_fields}


@pytest.mark.extended
def test_the_command_trains(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r'```bash\n(deepspeed --module .*?)```', TEXT, re.DOTALL)
    write_lerobot(tmp_path / 'data/pusht', episodes(3, 2))
    (tmp_path / 'Qwen').mkdir()
    (tmp_path / 'Qwen/Qwen2.5-VL-3B-Instruct').symlink_to(tiny('qwen2_5_vl'))
    monkeypatch.chdir(tmp_path)
    _, _, _, *argv = shlex.split(command.replace('\\\n', ' '))
    argv += (
        '--epochs 1 --bf16 False --log_type none --ds_cfgs ds_z0_config.json --num_workers 0 --action_bins 2'.split()
    )
    (ended,) = run(argv, pair=PAIRS['text_video_to_action'], algorithm=SFT)
    assert ended.code == 0, ended.output
    assert sum(record.get('train/samples', 0) for record in lines(tmp_path / 'output/pusht/metrics.jsonl')) == 5


@pytest.mark.extended
def test_the_command_that_looks_at_episodes_writes_a_page(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = re.findall(r'```bash\n(align-anything inspect .*?)```', TEXT, re.DOTALL)
    rows = tmp_path / 'data/pushes/steps.jsonl'
    rows.parent.mkdir(parents=True)
    Image.new('RGB', (56, 56), 'red').save(rows.parent / '0.png')
    steps = [{'image': '0.png', 'action': name} for name in ('left', 'right')]
    rows.write_text(json.dumps({'instruction': 'push the cup', 'steps': steps}) + '\n')
    (tmp_path / 'Qwen').mkdir()
    (tmp_path / 'Qwen/Qwen2.5-VL-3B-Instruct').symlink_to(tiny('qwen2_5_vl'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(shlex.split(command.replace('\\\n', ' '))[1:])
    assert leaving.value.code == 0
    assert {path.name for path in Path('output/looked_at').iterdir()} == {'action_statistics.json', 'inspect.html'}


def test_demonstrations_are_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (commands,) = re.findall(r'```bash\n(align-anything demonstrations .*?)```', TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for command in commands.splitlines():
        with pytest.raises(SystemExit) as leaving:
            main(shlex.split(command)[1:])
        assert leaving.value.code == 0
    told = capsys.readouterr().out
    assert 'the same success: 5 of 5' in told and 'the same pictures: 5 of 5' in told


def test_the_code_tells_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, 'docs/robot_data.md', 'exec'), {})
    assert capsys.readouterr().out.startswith('3 episodes; 19 steps of numbers, percentiles exact\n(')
