"""docs/web.md tells of the page as it is."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from align_anything.cli.main import main
from align_anything.configs.aliases import ALIASES
from align_anything.configs.schema import RunCfgs, groups_of
from align_anything.serve.ui import app, run
from align_anything.serve.ui import chat_tab as chats
from align_anything.serve.ui import data_tab as data
from align_anything.serve.ui import runs_tab as watching
from align_anything.serve.ui import train_tab as training

TEXT = (Path(__file__).parents[3] / 'docs' / 'web.md').read_text()


def test_its_commands_open_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to where it would listen, but for that with a password, which is not there."""
    blocks = re.findall(r'```bash\n(.+?)```', TEXT, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if ' ui' in line]
    commands = [words for words in commands if words[0] == 'align-anything']
    assert [words[1] for words in commands] == ['ui', 'ui']
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'projects').mkdir()
    (tmp_path / 'password').write_text('open-sesame')
    (tmp_path / 'password').chmod(0o600)
    served: list[Any] = []
    monkeypatch.setattr(run, 'bound_socket', lambda host, port: _Bound(host, port))
    monkeypatch.setattr(run, 'serve_app', lambda made, bound, **_: served.append(bound))
    monkeypatch.setattr(app, 'make_app', lambda page, keys, host: served.append((page.root.folder, list(keys), host)))
    for words in commands:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as leaving:
            main(words[1:])
        assert leaving.value.code == 0
    (first, bound, second, _) = served
    assert first == (tmp_path / 'projects', [], '127.0.0.1') and (bound.host, bound.port) == ('127.0.0.1', 7860)
    assert second == (tmp_path / 'projects', ['open-sesame'], '0.0.0.0')


class _Bound:
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def getsockname(self) -> tuple[str, int]:
        return self.host, self.port

    def close(self) -> None: ...


def test_every_option_button_and_tab_is_told() -> None:
    options = set(inspect.signature(run.serve_page).parameters) - {'known'}
    assert {f'--{option}' for option in options} <= set(re.findall(r'`(--\w+)`', TEXT))
    for module in (training, watching, chats, data):
        for label in re.findall(r"gr\.Button\(\s*'([^']+)'", inspect.getsource(module)):
            assert label in TEXT or label in ('Refresh', 'Look', 'Next rows'), label
    for tab in re.findall(r"gr\.Tab\('(\w+)'", inspect.getsource(app)):
        assert re.search(rf'^## .*\b{tab}\b', TEXT, re.MULTILINE), tab


def test_settings_that_it_names_are_there() -> None:
    section = TEXT.split('## Where the options')[1].split('## ')[0]
    known = {key for model in groups_of(RunCfgs).values() for key in model.model_fields} | {*ALIASES}
    named = set(re.findall(r'`(\w+)`', section))
    assert len(named) > 10 and named <= known
