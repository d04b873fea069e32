"""Serving: answers a second under 32 clients against those under one, over HTTP, by the clock on the wall."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.bench.measure import in_child, preload
from scripts.bench.report import Ratio
from scripts.bench.work import Size, text_model

CLIENTS, TOKENS = 32, 32
ROUNDS, FEWEST = 3, 12
"""Requests of each client, and of one that is alone."""


def serve(folder: Path, size: Size) -> list[Ratio]:
    """Answers of a Qwen2-type model to prompts of one to eight words. The clients are threads of the same process."""
    model = text_model(folder / 'model', size)
    preload('deepspeed', 'align_anything.serve.checkpoint', 'align_anything.serve.app')
    rates = {clients: max(in_child(_rate, model, clients) for _ in range(size.rounds)) for clients in (1, CLIENTS)}
    detail = f'{rates[CLIENTS]:.1f} and {rates[1]:.1f} answers of {TOKENS} tokens a second'
    return [Ratio(f'serve: {CLIENTS} clients / one', rates[CLIENTS] / rates[1], 4.0, detail=detail)]


def _rate(model: Path, clients: int) -> float:
    """Answers a second once the server is warm."""
    import uvicorn

    from align_anything.core.asgi import bound_socket, server_config
    from align_anything.serve.app import make_app
    from align_anything.serve.run import open_server
    from align_anything.serve.settings import Serve
    from align_anything.trainers.launch import quieten_libraries, settings_of
    from align_anything.trainers.pairs import PAIRS

    quieten_libraries()
    given = {'model_name_or_path': model, 'bf16': False, 'generation_batch_size': CLIENTS}
    argv = [word for key, value in given.items() for word in (f'--{key}', str(value))]
    server = open_server(settings_of(PAIRS['any_to_any'], Serve, argv, {}))
    with bound_socket('127.0.0.1', 0) as bound:
        running = uvicorn.Server(server_config(make_app(server), lifespan='off'))
        thread = threading.Thread(target=running.run, kwargs={'sockets': [bound]})
        thread.start()
        while not running.started:
            time.sleep(0.01)
        with ThreadPoolExecutor(clients) as pool:
            ask = _Asking(bound.getsockname()[1], server.name)
            list(pool.map(ask, range(clients)))
            requests = max(FEWEST, clients * ROUNDS)
            started = time.perf_counter()
            list(pool.map(ask, range(requests)))
            seconds = time.perf_counter() - started
        running.should_exit = True
        thread.join()
    server.close()
    return requests / seconds


class _Asking:
    def __init__(self, port: int, name: str) -> None:
        self._port, self._name = port, name

    def __call__(self, number: int) -> None:
        import http.client

        connection = http.client.HTTPConnection('127.0.0.1', self._port)
        turns = [{'role': 'user', 'content': ' '.join(['word'] * (1 + number % 8))}]
        asked = {'model': self._name, 'messages': turns, 'max_tokens': TOKENS, 'temperature': 0}
        connection.request(
            'POST', '/v1/chat/completions', json.dumps(asked), headers={'Content-Type': 'application/json'}
        )
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read().decode())
        answer.read()
        connection.close()
