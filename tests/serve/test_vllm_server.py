"""The command line of vLLM's own server; and, extended, that server asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
from PIL import Image

from align_anything.core.errors import SettingsError
from align_anything.serve import vllm_server
from align_anything.serve.run import serve
from align_anything.serve.vllm_server import run_vllm
from tests.harness.ranks import free_port
from tests.serve.common import SMALL, asked, image_uri, serving, settings

KEY = 'my-very-secret-key'


def became(monkeypatch: pytest.MonkeyPatch, *argv: str, keys: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    found: list[Any] = []
    monkeypatch.setattr(os, 'execve', lambda program, argv, environ: found.append((argv, environ)))
    run_vllm(settings(*SMALL, '--use_vllm', 'True', *argv), keys)
    return found[0]


def after(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_settings_become_arguments(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(tiny('qwen3'))
    argv, environ = became(
        monkeypatch, '--model_name_or_path', model, '--port', '8123', '--served_model_name', 'mine',
        '--vllm_args=--enable-auto-tool-choice --tool-call-parser hermes', keys=(KEY,),
    )  # fmt: skip
    said = {name: after(argv, name) for name in argv if name.startswith('--') and name != argv[-3]}
    assert argv[:3] == [sys.executable, '-m', vllm_server.MODULE]
    assert (said['--model'], said['--served-model-name'], said['--port']) == (model, 'mine', '8123')
    assert (said['--max-model-len'], said['--dtype'], said['--generation-config']) == ('512', 'float32', 'vllm')
    assert said['--allowed-media-domains'] == 'nowhere.invalid' and said['--host'] == '127.0.0.1'
    assert 'im_start' in Path(said['--chat-template']).read_text()
    assert argv[-3:] == ['--enable-auto-tool-choice', '--tool-call-parser', 'hermes']
    assert '--enforce-eager' not in argv and said['--gpu-memory-utilization'] == '0.9'
    assert environ['VLLM_API_KEY'] == KEY and KEY not in ' '.join(argv)
    assert environ['VLLM_MEDIA_URL_ALLOW_REDIRECTS'] == '0'


def test_adapters(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(tiny('qwen3'))

    def adapter(**changed: Any) -> str:
        own = {'base_model_name_or_path': base, 'peft_type': 'LORA', 'r': 12, 'lora_alpha': 24, **changed}
        (tmp_path / 'adapter_config.json').write_text(json.dumps(own))
        return str(tmp_path)

    for name in ('tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'):
        if (Path(base) / name).exists():
            (tmp_path / name).write_bytes((Path(base) / name).read_bytes())
    argv, _ = became(monkeypatch, '--model_name_or_path', adapter(), '--served_model_name', 'mine')
    assert after(argv, '--model') == base and after(argv, '--served-model-name') == 'mine-base'
    assert after(argv, '--lora-modules') == f'mine={tmp_path}' and after(argv, '--max-lora-rank') == '16'
    for changed, message in (({'use_dora': True}, 'use_dora'), ({'modules_to_save': ['lm_head']}, 'modules_to_save')):
        with pytest.raises(SettingsError, match=f'{message}.* merge it first'):
            became(monkeypatch, '--model_name_or_path', adapter(**changed))


def test_what_it_cannot_serve_is_refused(
    tiny: Callable[..., Path], emitting: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for argv, keys, message in (
        (('--model_name_or_path', str(emitting('unified'))), (), 'answers in text alone'),
        (('--model_name_or_path', str(tiny('qwen3'))), (KEY, KEY), 'takes one key'),
        (('--model_name_or_path', str(tiny('qwen3')), '--allow_urls', 'True'), (), 'private addresses'),
    ):
        with pytest.raises(SettingsError, match=message):
            became(monkeypatch, *argv, keys=keys)
    with pytest.raises(SettingsError, match='reward_model_name_or_path'):
        serve(['--use_vllm', 'True', '--model_name_or_path', 'x', '--reward_model_name_or_path', 'y'], {})


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_answers_as_transformers_do_fetches_nothing_and_dies_with_its_engine(tiny: Callable[..., Path]) -> None:
    pytest.importorskip('vllm')
    model = str(tiny('qwen2_vl'))
    with vllm_serving(model) as (url, process), a_site() as (site, visits):
        name, how = Path(model).name, {'max_tokens': 8, 'temperature': 0}

        def ask(url: str, key: str, messages: Any) -> str:
            # It closes connections that are kept open, at times as the next request is under way.
            patient = openai.OpenAI(base_url=f'{url}/v1', api_key=key, max_retries=3)
            answer = patient.chat.completions.create(model=name, messages=messages, **how)
            return answer.choices[0].message.content

        body = {'model': name, 'messages': asked('hello'), **how}
        assert httpx2.post(f'{url}/v1/chat/completions', json=body).status_code == 401
        red = Image.new('RGB', (56, 56), 'red')
        with serving('--model_name_or_path', model) as ours:
            for turns in (asked('hello'), shown(image_uri(red))):
                # vLLM leaves special tokens out of what it says.
                assert ask(url, KEY, turns)[:4] == ask(ours, 'none', turns)[:4] != ''
        for there in (f'{site}/a.png', 'http://169.254.169.254/latest', 'file:///etc/hostname'):
            with pytest.raises(openai.APIStatusError):
                ask(url, KEY, shown(there))
        with pytest.raises(openai.BadRequestError):
            ask(url, KEY, shown(image_uri(red)[:60]))
        assert not visits and httpx2.get(f'{site}/a.png').status_code == 200 and visits == ['/a.png']
        for engine in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if 'EngineCor' in ' '.join([engine.name(), *engine.cmdline()]):
                    engine.kill()
        with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
            ask(url, KEY, asked('hello'))
        # With code 0: who keeps it running must not ask for a failure.
        process.wait(200)


@contextmanager
def vllm_serving(model: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """vLLM's server as the command starts it, with a key."""
    port = free_port()
    own = ['--model_name_or_path', model, '--use_vllm', 'True', '--port', str(port), '--vllm_enforce_eager', 'True']
    command = [sys.executable, '-m', 'align_anything.cli', 'serve', *SMALL, *own]
    environ = {**os.environ, 'ALIGN_ANYTHING_API_KEY': KEY, 'CUDA_VISIBLE_DEVICES': ''}
    with tempfile.TemporaryFile('w+') as said:
        command += ['--vllm_gpu_memory_utilization', '0.1']
        process = subprocess.Popen(command, env=environ, stdout=said, stderr=subprocess.STDOUT, text=True)
        try:
            url = f'http://127.0.0.1:{port}'
            for _ in range(1000):
                with suppress(httpx2.TransportError):
                    if httpx2.get(f'{url}/health').status_code == 200:
                        break
                assert process.poll() is None
                time.sleep(0.5)
            yield url, process
        finally:
            process.terminate()
            process.wait(60)
            said.seek(0)
            print(said.read()[-8000:])


@contextmanager
def a_site() -> Iterator[tuple[str, list[str]]]:
    """A server of this machine, and what was asked of it."""
    visits: list[str] = []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            visits.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(('127.0.0.1', 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}', visits
    finally:
        server.shutdown()


def shown(url: str) -> list[dict[str, Any]]:
    part = {'type': 'image_url', 'image_url': {'url': url}}
    return [{'role': 'user', 'content': [part, {'type': 'text', 'text': 'What is it?'}]}]
