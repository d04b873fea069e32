"""Servers that generate for a run: each is handed the weights, and the prompts are spread over them."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import httpx2
import torch
from torch import Tensor

from align_anything.core.connections import KEPT_ALIVE
from align_anything.core.distributed import all_gather_object, barrier, rank, world_size
from align_anything.core.errors import SampleError, SettingsError, TrainingError
from align_anything.rollouts.vllm_engine import Generated, Named, Request, VLLMOptions
from align_anything.rollouts.weight_group import PeerError, address_seen_from, join_group, send, shapes_of
from align_anything.rollouts.wire import RUN_HEADER, call_of, named_media, pack, pack_requests, unpack_generated

CHUNK_BYTES = 256 * 2**20
CONNECT_SECONDS, SECONDS_TO_SAY_WHY = 10.0, 5.0
T = TypeVar('T')


class Servers:
    """Generates with servers, `python -m align_anything.rollouts.vllm_server`, all with the same weights.

    Server number s gets its weights from rank s modulo the number of ranks. A rank generates with those it feeds,
    and with fewer servers than ranks, with that of its number modulo theirs.

    Args:
        urls: addresses of the servers, such as `http://node1:8000`.
        source: the model, by a name or path that the servers know too.
        options: how vLLM runs on each.
        timeout: seconds after which a server that answers nothing is taken for dead.
        backend: of the process group that weights go through, `nccl` between GPUs or `gloo`; None sends them over HTTP.

    Raises:
        SettingsError: a server cannot be reached.
    """

    def __init__(
        self, urls: Sequence[str], source: str, options: VLLMOptions, timeout: float, backend: str | None = None
    ) -> None:
        self.source, self.options, self.backend = source, options, backend
        self.timeout = timeout
        # One for all ranks, by which servers tell runs apart.
        self.run = all_gather_object(uuid.uuid4().hex)[0]
        self._group: Any = None
        self.fed = [url.rstrip('/') for url in urls[rank() :: world_size()]]
        self.asked = self.fed or [urls[rank() % len(urls)].rstrip('/')]
        self._held: dict[str, dict[str, Future[None]]] = {url: {} for url in self.asked}
        self._holding = threading.Lock()
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=CONNECT_SECONDS),
            transport=httpx2.HTTPTransport(
                # Each request that is on its way has one.
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
                # A server may generate for long, but not without its host.
                socket_options=KEPT_ALIVE,
            ),
        )
        self._workers: dict[str, int] = {}
        unreached = [problem for url in self.asked if (problem := self._unreached(url))]
        if unreached:
            raise SettingsError(unreached)

    def load(self, named: Callable[[], Named]) -> None:
        """Hands the weights to the servers that this rank feeds. Every rank calls it and goes through all of them."""
        if self.backend is not None and self._group is None and self.fed:
            self._group = self._joined(self.backend)
        for number, (chunk, last) in enumerate(_chunks(named())):
            if self.fed:
                self._hand_over(chunk, first=number == 0, last=last)
        # Others may generate with a server that this rank feeds. With new weights a server lets go of all media.
        barrier()
        self._held = {url: {} for url in self.asked}

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Returns what is generated for each request, which the servers of this rank divide. Any thread may call it.

        Requests of a group go to one server, which has computed their beginning. Media with names go to a server once,
        ahead of the first request that has them.
        """
        shares: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            server = (number if request.group is None else request.group) % len(self.asked)
            shares.setdefault(self.asked[server], []).append(number)
        messages = [self._message(url, [requests[at] for at in own]) for url, own in shares.items()]
        answers = self._all([*shares], '/generate', messages)
        found: dict[int, Generated] = {}
        for (url, own), answer in zip(shares.items(), answers, strict=True):
            try:
                generated = unpack_generated(answer)
            except (SampleError, TypeError, ValueError) as error:
                raise TrainingError(f'{url} answered with something else than responses: {error}') from error
            if len(generated) != len(own):
                raise TrainingError(f'{url} answered {len(generated)} of {len(own)} requests.')
            found |= dict(zip(own, generated, strict=True))
        return [found[number] for number in range(len(requests))]

    def _message(self, url: str, requests: Sequence[Request]) -> bytes:
        """The requests as a message to a server that holds all their media with names by then."""
        named = named_media(requests)
        if not named:
            return pack_requests(requests)
        sent: Future[None] = Future()
        with self._holding:
            held, calls = self._held[url], set(map(call_of, named))
            # With media of another call a server lets go of those before.
            held = self._held[url] = {name: own for name, own in held.items() if call_of(name) in calls}
            others = {name: held[name] for name in named if name in held}
            held |= dict.fromkeys(named.keys() - others.keys(), sent)
        try:
            for other in others.values():
                other.result()
            if len(others) < len(named):
                self._post(f'{url}/media', pack_requests(requests, others))
        except BaseException as error:
            sent.set_exception(error)
            raise
        sent.set_result(None)
        return pack_requests(requests, named)

    def sleep(self) -> None:
        """Does nothing: the memory of a server is its own."""

    def _hand_over(self, chunk: dict[str, Tensor], *, first: bool, last: bool) -> None:
        record = {'model': self.source, 'options': dataclasses.asdict(self.options), 'first': first, 'last': last}
        if self.backend is None:
            message = pack({**record, 'backend': None}, chunk)
            self._all(self.fed, '/weights', [message] * len(self.fed))
            return
        message = pack({**record, 'backend': self.backend, 'shapes': shapes_of(chunk)}, {})
        answers = _begun(lambda: self._all(self.fed, '/weights', [message] * len(self.fed)))
        try:
            send(self._group, list(chunk.values()), self.backend, self.timeout, partial(_raise_failure, answers))
        except PeerError:
            # What a server says of it tells more.
            wait([answers], SECONDS_TO_SAY_WHY)
            _raise_failure(answers)
            raise
        answers.result()

    def _joined(self, backend: str) -> Any:
        host, port = address_seen_from(self.fed[0])
        # Each worker of a server is a member, in the order of servers.
        *firsts, size = accumulate((self._workers[url] for url in self.fed), initial=1)
        member = {'host': host, 'port': port, 'size': size, 'backend': backend}
        how = {'model': self.source, 'options': dataclasses.asdict(self.options)}
        messages = [pack({**member, **how, 'rank': first}, {}) for first in firsts]
        answers = _begun(lambda: self._all(self.fed, '/group', messages))
        # A thread has its own current device.
        device = torch.cuda.device(torch.cuda.current_device()) if backend == 'nccl' else nullcontext()

        def join() -> Any:
            with device:
                return join_group(**member, rank=0, seconds=self.timeout)

        group = _begun(join)
        # The first that fails ends the waiting for the other, whose thread may stay until its time is over.
        wait([answers, group], return_when=FIRST_EXCEPTION)
        if group.done() and group.exception() is not None:
            wait([answers], SECONDS_TO_SAY_WHY)
        _raise_failure(answers)
        found = group.result()
        answers.result()
        return found

    def _all(self, urls: Sequence[str], path: str, messages: Sequence[bytes]) -> list[bytes]:
        if len(urls) < 2:
            return [self._post(f'{url}{path}', message) for url, message in zip(urls, messages, strict=True)]
        with ThreadPoolExecutor(len(urls)) as pool:
            return list(pool.map(self._post, [f'{url}{path}' for url in urls], messages))

    def _post(self, url: str, message: bytes) -> bytes:
        try:
            answer = self._client.post(url, content=message, headers={RUN_HEADER: self.run})
        except httpx2.TransportError as error:
            raise TrainingError(
                f'{url} is gone ({type(error).__name__}: {error}). Start it again; the run goes on from its last '
                'checkpoint with resume.'
            ) from error
        if answer.status_code != 200:
            raise TrainingError(f'{url} answered {answer.status_code}: {_reason(answer)}')
        return answer.content

    def _unreached(self, url: str) -> str | None:
        start = f'vllm_cfgs.vllm_server_urls: {url}'
        if not url.startswith(('http://', 'https://')):
            return f'{start} is no address; write for instance http://localhost:8000.'
        try:
            answer = self._client.get(f'{url}/health')
        except httpx2.TransportError as error:
            return (
                f'{start} cannot be reached ({type(error).__name__}: {error}): start python -m '
                'align_anything.rollouts.vllm_server there.'
            )
        if answer.status_code != 200:
            return f'{start} answered {answer.status_code} to /health.'
        self._workers[url] = answer.json().get('workers', 1)
        return None


def _begun(work: Callable[[], T]) -> Future[T]:
    """Begins work in a thread that nobody has to wait for, not even the end of the program."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    threading.Thread(target=run, daemon=True).start()
    return future


def _raise_failure(future: Future[Any]) -> None:
    """Raises what went wrong already."""
    if future.done() and future.exception() is not None:
        future.result()


def _chunks(named: Named) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """Cuts weights into chunks of at most `CHUNK_BYTES`, at least one weight each, and says which is the last."""
    chunk: dict[str, Tensor] = {}
    size = 0
    for name, tensor in named:
        if chunk and size + tensor.nbytes > CHUNK_BYTES:
            yield chunk, False
            chunk, size = {}, 0
        chunk[name] = tensor
        size += tensor.nbytes
    yield chunk, True


def _reason(answer: httpx2.Response) -> Any:
    try:
        return answer.json()['error']
    except (ValueError, KeyError, TypeError):
        return 'no reason given.'
