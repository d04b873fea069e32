"""The page of projects/any2any that asks what to train and writes a YAML file."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from align_anything.configs.yaml_text import parse_yaml
from align_anything.core.errors import SettingsError


@pytest.fixture
def page(tmp_path: Path, scripts: Callable[[str], Any]) -> Iterator[tuple[Callable[..., tuple[int, str]], Path]]:
    """`ask(fields)` sends a form, `ask()` opens the page; and the file that it writes."""
    file = tmp_path / 'configs' / 'my.yaml'
    server = scripts('web_form').make_server(file, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(fields: dict[str, Any] | None = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=10)
        if fields is None:
            connection.request('GET', '/', headers=headers)
        else:
            kind = {'Content-Type': 'application/x-www-form-urlencoded'}
            connection.request('POST', '/', urlencode(fields, doseq=True), {**kind, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    yield ask, file
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_form_writes_a_file_that_can_be_read(page: Any, scripts: Callable[[str], Any]) -> None:
    ask, file = page
    status, shown = ask()
    token = re.search(r'name="token" value="([^"]+)"', shown).group(1)
    assert status == 200 and 'modalities.output' in shown and 'Peak learning rate.' in shown
    fields = {
        'token': token,
        'model_name_or_path': 'Qwen/Qwen3-0.6B',
        'dataset': 'one.jsonl, two.jsonl',
        'modalities.input': ['text', 'image'],
        'modalities.output': ['text'],
        'encoders.image.model': 'openai/clip-vit-base-patch32',
        'use_peft': 'true',
        'lora.target_modules': 'q_proj, v_proj',
        'learning_rate': '1e-4',
        'more': 'seed: 3',
    }
    status, shown = ask({**fields, 'learning_rate': 'quick<b>'})
    assert status == 200 and 'is written' in shown and 'quick<b>' not in shown
    status, shown = ask(fields)
    assert parse_yaml(file.read_text()) == {
        'model_name_or_path': 'Qwen/Qwen3-0.6B',
        'dataset': ['one.jsonl', 'two.jsonl'],
        'modalities': {'input': ['text', 'image'], 'output': ['text']},
        'encoders': {'image': {'model': 'openai/clip-vit-base-patch32'}},
        'use_peft': True,
        'lora': {'target_modules': ['q_proj', 'v_proj']},
        'learning_rate': 1e-4,
        'seed': 3,
    }
    assert scripts('mapping').read_file(file).pair == 'text_image_to_text'


def test_the_form_refuses_what_is_wrong_and_who_is_not_asked(page: Any, scripts: Callable[[str], Any]) -> None:
    ask, file = page
    token = re.search(r'name="token" value="([^"]+)"', ask()[1]).group(1)
    asked = {'token': token, 'model_name_or_path': 'm', 'dataset': 'd'}
    for fields, words in (
        ({'model_name_or_path': ''}, 'model_name_or_path is required'),
        ({'more': 'sed: 3'}, 'there is no key'),
        ({'more': '- seed'}, 'write a key and its value'),
        ({'more': 'a: ['}, 'further keys'),
        ({'more': 'dataset: e'}, 'dataset has a field of its own'),
        ({'tokenizers.image': 'discrete'}, 'image is named, but modalities'),
    ):
        status, shown = ask({**asked, **fields})
        assert status == 200 and 'class="wrong"' in shown and words in shown, shown[:500]
    assert ask({**asked, 'token': 'x'})[0] == 403
    assert ask(asked, Host='elsewhere.example')[0] == 403
    assert ask({**asked, 'more': 'x' * 2**17})[0] == 413
    assert not file.exists()
    file.write_text('')
    with pytest.raises(SettingsError, match='exists; name another file'):
        scripts('web_form').make_server(file, 0)
