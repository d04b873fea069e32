"""What `/metrics` tells, in the text form of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
RESPONSES = (1, 2, 4, 8, 16, 32, 64, 128)
PREFIX = 'align_anything'


class Metrics:
    """Counts what one server does. Two servers in a process count apart. Needs prometheus_client.

    Args:
        waiting, running: tell how many requests wait for the model, and how many it is answering.
    """

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        own = {'registry': self._registry}
        self._requests = Counter(f'{PREFIX}_requests', 'Requests answered.', ['path', 'status'], **own)
        self._seconds = Histogram(
            f'{PREFIX}_request_seconds',
            'Seconds to the end of an answer.',
            ['path'],
            buckets=SECONDS,
            **own,
        )
        self._first = Histogram(
            f'{PREFIX}_first_part_seconds',
            'Seconds to the first part of a streamed answer.',
            buckets=SECONDS,
            **own,
        )
        self._prompt_tokens = Counter(f'{PREFIX}_prompt_tokens', 'Tokens of prompts.', **own)
        self._generated = Counter(f'{PREFIX}_generated_tokens', 'Tokens, or other units, generated.', **own)
        self._batch = Histogram(f'{PREFIX}_batch_responses', 'Responses generated at once.', buckets=RESPONSES, **own)
        Gauge(f'{PREFIX}_waiting', 'Prompts that wait for the model.', **own).set_function(waiting)
        Gauge(f'{PREFIX}_running', 'Prompts that are being answered.', **own).set_function(running)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request; its `path` is one that the server has."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first_part(self, seconds: float) -> None:
        """Counts the first part of a streamed answer."""
        self._first.observe(seconds)

    def tokens(self, prompt: int, generated: int) -> None:
        """Counts the tokens of an answer and its prompt."""
        self._prompt_tokens.inc(prompt)
        self._generated.inc(generated)

    def batch(self, responses: int) -> None:
        """Counts a batch."""
        self._batch.observe(responses)

    def text(self) -> bytes:
        """Returns all of it as Prometheus reads it."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)


def content_type() -> str:
    """Returns the content type of that text."""
    from prometheus_client import CONTENT_TYPE_LATEST

    return CONTENT_TYPE_LATEST
