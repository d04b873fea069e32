"""docs/serving.md and docs/chat.md say what the code does: their commands and code run on tiny models."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.serve import run as serving_run
from align_anything.serve.app import make_app
from align_anything.serve.chat.loop import COMMANDS
from align_anything.serve.chat.run import chat
from align_anything.serve.requests import ChatBody, Sampled
from tests.harness.once import once
from tests.serve.common import SMALL, Parrot, listening, parrot_server, serving
from tests.serve.test_checkpoints import _judge

DOCS = Path(__file__).parents[2] / 'docs'
SERVING, CHAT = (DOCS / 'serving.md').read_text(), (DOCS / 'chat.md').read_text()
QUICK = ('--max_new_tokens', '8')


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.+?)```', text, re.DOTALL)


def commands(text: str, program: str) -> list[list[str]]:
    lines = [line for block in blocks(text, 'bash') for line in block.splitlines()]
    found = [shlex.split(line)[2:] for line in lines if line.startswith(f'align-anything {program}')]
    return found + [
        shlex.split(line.partition('| align-anything ')[2])[1:] for line in lines if line.startswith('printf')
    ]


def on(argv: list[str], places: dict[str, str]) -> list[str]:
    return [places.get(word, word) for word in argv]


def test_serving(
    tiny: Callable[..., Path], shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = once(shared_cache, 'served-judge', lambda folder: _judge(tiny('llama'), folder))
    places = {
        'Qwen/Qwen2.5-0.5B-Instruct': str(tiny('qwen3')),
        'output/reward_model': str(judge),
        '8000': '18643',
        '8001': '18644',
    }
    answers, rewards, vllm = commands(SERVING, 'serve')
    apps: list[Any] = []
    monkeypatch.setattr(serving_run, 'serve_app', lambda app, bound: apps.append((app, bound.getsockname())))
    for argv in (answers, rewards):
        serving_run.serve([*SMALL, *on(argv, places)], {})
    assert [port for _, (_, port) in apps] == [18643, 18644]
    ran: list[list[str]] = []
    monkeypatch.setattr('os.execve', lambda program, argv, environ: ran.append(argv))
    serving_run.serve([*SMALL, *on(vllm, places)], {})
    assert not ran, 'a dry run'
    talking, judging = blocks(SERVING, 'python')
    with serving('--model_name_or_path', places['Qwen/Qwen2.5-0.5B-Instruct']) as url:
        exec(compile(talking.replace('http://127.0.0.1:8000', url), 'serving.md', 'exec'), {})  # noqa: S102
    with serving('--reward_model_name_or_path', places['output/reward_model']) as url:
        exec(compile(judging.replace('http://127.0.0.1:8001', url), 'serving.md', 'exec'), {})  # noqa: S102
    assert re.search(r'-?\d+\.\d+\s*\Z', capsys.readouterr().out), 'the reward'


def test_every_address_and_every_parameter_is_told() -> None:
    server = parrot_server()
    paths = {route.path for route in make_app(server).routes}
    server.close()
    told = set(re.findall(r'`(?:GET|POST) (/[^`]+)`|`(/[^`]+)`', SERVING))
    told = {(one or other).replace('NAME', '{name:path}') for one, other in told}
    assert paths <= told
    table = SERVING.split('### Chat completions')[1].split('### ')[0]
    named = set(re.findall(r'`(\w+)`', table))
    assert {*ChatBody.model_fields, *Sampled.model_fields} - {'model'} <= named
    assert {'presence_penalty', 'logprobs'} <= {*ChatBody.neutral}
    for metric in re.findall(r'`(align_anything_\w+)', SERVING):
        text = server.metrics.text().decode()
        assert metric.removesuffix('_total') in text, metric


def test_arguments_of_vllm_are_told(tiny: Callable[..., Path]) -> None:
    from align_anything.models.pretrained_model import load_spec
    from align_anything.serve.vllm_server import vllm_arguments
    from tests.serve.common import settings

    model = str(tiny('qwen3'))
    resolved = settings(*SMALL, '--model_name_or_path', model, '--use_vllm', 'True')
    argv = vllm_arguments(resolved, load_spec(model, model_max_length=None))
    section = SERVING.split('## vLLM')[1].split('\n## ')[0]
    assert {word for word in argv if word.startswith('--')} <= set(re.findall(r'`(--[\w-]+)', section))


@pytest.mark.extended
def test_chat(tiny: Callable[..., Path]) -> None:
    model, other = str(tiny('qwen3')), str(tiny('llama'))
    places = {'Qwen/Qwen2.5-0.5B-Instruct': model, 'output/sft': model, 'output/dpo': other}
    found = commands(CHAT, 'chat')
    assert len(found) == 4
    with listening(parrot_server(Parrot())) as url:
        for argv in found:
            out = io.StringIO()
            remote = '--url' in argv
            small = () if remote else (*SMALL, *(() if '--max_new_tokens' in argv else QUICK))
            given = [url + '/v1' if word.startswith('http://') else word for word in on(argv, places)]
            chat([*small, *given], {}, io.StringIO('hello\n'), out)
            assert out.getvalue().strip() and '! ' not in out.getvalue()


def test_every_command_of_the_conversation_is_told() -> None:
    assert {*re.findall(r'`/(\w+)', CHAT)} >= {*COMMANDS} - {'exit'}
