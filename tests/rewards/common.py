"""Completions for tests, and servers on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from align_anything.rewards.base import Completion, call_reward, check_options, get_reward


def completion(
    response: str = 'Yes.', ground_truth: Any = None, *, prompt: str = 'Why?', source: str = 'rows:1', **rest: Any
) -> Completion:
    fields = {
        'conversation': [{'role': 'user', 'content': [{'type': 'text', 'text': prompt}]}],
        'meta': {} if ground_truth is None else {'ground_truth': ground_truth},
        'length': len(response),
        'finished': True,
    }
    message = {'role': 'assistant', 'content': [{'type': 'text', 'text': response}]}
    return Completion(message=message, source=source, **{**fields, **rest})


def reward(name: str, response: str, ground_truth: Any = None, options: dict | None = None, **rest: Any) -> float:
    """What the function called `name` gives to one response."""
    function = get_reward(name)
    (value,) = call_reward(
        name, function, [completion(response, ground_truth, **rest)], check_options(name, function, options or {})
    )
    return value


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Runs a web application in a thread, on a free port, and yields its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host='127.0.0.1', port=0, log_level='warning', lifespan='off'))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
    finally:
        server.should_exit = True
        thread.join()
