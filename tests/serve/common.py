"""Servers over tiny checkpoints and over a model that needs none, really listening."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import openai
import torch

from align_anything.configs.resolve import Resolved
from align_anything.core.asgi import HEAD_SECONDS, bound_socket, server_config
from align_anything.core.types import Message, Response
from align_anything.models.call_form import JSONCalls
from align_anything.rollouts.base import Tell
from align_anything.serve.answering import CallReader, Prompt, Wish
from align_anything.serve.app import make_app
from align_anything.serve.run import open_server
from align_anything.serve.server import Limits, Server
from align_anything.serve.settings import ANY, Serve
from align_anything.trainers.launch import quieten_libraries, settings_of

SMALL = ('--bf16', 'False', '--model_max_length', '512')
CLIENT = httpx2.Client(verify=False, limits=httpx2.Limits(max_connections=200))
HERMES = JSONCalls('<tool_call>', '</tool_call>', 'name', 'arguments')


def settings(*argv: str) -> Resolved:
    return settings_of(ANY, Serve, argv, {})


@contextmanager
def listening(server: Server, head_seconds: float = HEAD_SECONDS) -> Iterator[str]:
    """Runs a server in a thread, on a free port, and yields its address."""
    import uvicorn

    with bound_socket('127.0.0.1', 0) as bound:
        running = uvicorn.Server(server_config(make_app(server), head_seconds, lifespan='off', timeout_keep_alive=2))
        thread = threading.Thread(target=running.run, kwargs={'sockets': [bound]})
        thread.start()
        try:
            while not running.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f'http://127.0.0.1:{bound.getsockname()[1]}'
        finally:
            running.should_exit = True
            thread.join()
            server.close()


@contextmanager
def serving(*argv: str, small: Sequence[str] = SMALL) -> Iterator[str]:
    """Serves the checkpoints of settings."""
    quieten_libraries()
    with listening(open_server(settings(*small, *argv))) as url:
        yield url


@cache
def client(url: str, key: str = 'none') -> openai.OpenAI:
    """OpenAI's client, one for each server: they take longer to make than to use."""
    return openai.OpenAI(base_url=f'{url}/v1', api_key=key, max_retries=0, timeout=120, http_client=CLIENT)


def asked(text: str) -> list[dict[str, Any]]:
    return [{'role': 'user', 'content': text}]


def image_uri(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def file_uri(kind: str, path: Path) -> str:
    return f'data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}'


class Parrot:
    """Says the last message back, a letter at a time, in turn for all that it is asked at once.

    `pause` seconds pass between two letters; `batches` are the numbers of prompts that it got at once.
    """

    reads = frozenset()
    emits = frozenset()
    writes_text = True

    def __init__(self, pause: float = 0.0, say: Callable[[str], str] = lambda text: text) -> None:
        self.pause, self.say = pause, say
        self.batches: list[int] = []
        self.wishes: list[Wish] = []
        self.letters = 0

    def prepare(self, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]], wish: Wish) -> Prompt:
        content = turns[-1]['content']
        text = content if isinstance(content, str) else ''.join(part['text'] for part in content)
        return Prompt(text, len(text), wish)

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], tell: Tell) -> list[list[Response]]:
        self.batches.append(len(prompts))
        self.wishes.append(prompts[0].wish)
        texts = [self.say(prompt.content) for prompt in prompts]
        said = [[''] * prompts[0].wish.responses for _ in prompts]
        ended: set[tuple[int, int]] = set()
        for place in range(max(map(len, texts))):
            if len(ended) == sum(map(len, said)):
                break
            time.sleep(self.pause)
            for number, text in enumerate(texts):
                for which in range(len(said[number])):
                    if place < len(text) and (number, which) not in ended:
                        self.letters += 1
                        said[number][which] += text[place]
                        if tell(number, which, {'type': 'text', 'text': text[place]}):
                            ended.add((number, which))
        return [[_response(text) for text in own] for own in said]

    def calls(self) -> CallReader | None:
        return HERMES


def _response(text: str) -> Response:
    ids = torch.zeros(len(text), dtype=torch.long)
    return Response(ids, torch.ones(len(text)), parts=[{'type': 'text', 'text': text}])


def parrot_server(parrot: Any = None, **options: Any) -> Server:
    return Server('parrot', parrot or Parrot(), **options)


def limits(**changed: Any) -> Limits:
    return Limits(**changed)
