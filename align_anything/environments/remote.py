"""Environments behind HTTP: `align-anything serve-environment`, or anything that answers as it does."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import httpx2
from pydantic import BaseModel, PositiveInt, ValidationError

from align_anything.core.errors import WorldError
from align_anything.environments.base import BatchEnvironment
from align_anything.environments.hosts import Elsewhere, Fault, Lost
from align_anything.environments.wire import MOST_BYTES, from_bytes, to_bytes
from align_anything.environments.workers import SECONDS

LANES = 64
"""Requests that are on their way at once."""
ALLOWANCE = 10.0
"""Seconds for the way there and back, and for a server that starts again."""
PAUSE = 0.5
OK, GONE = 200, 410
KEY_VARIABLE = 'ALIGN_ANYTHING_API_KEY'


class Unreachable(Fault):
    """A server that is not there."""


class Told(BaseModel):
    """What a server tells of its environment.

    Attributes:
        environment: its name.
        tools, rewards, capacity: as those of `BatchEnvironment`.
        actions: the `names` of what can be done, or the `dimensions` of an action; None where it does not say.
        lanes: how many are asked at once.
        timeout: seconds in which one must answer.
    """

    environment: str
    tools: list[dict[str, Any]] = []
    rewards: bool = True
    actions: dict[str, list[str]] | None = None
    capacity: PositiveInt | None = 1
    lanes: PositiveInt = 1
    timeout: float = SECONDS


class Remote:
    """The environment of a server. The key in the variable ALIGN_ANYTHING_API_KEY, if there is one, goes with requests.

    Args:
        url: address of the server, which says how long an environment may take.

    Raises WorldError where it is no address.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip('/')
        try:
            parsed = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise WorldError(f'the address of the environment is none: {error}.') from error
        if not parsed.host:
            raise WorldError(f"the address of the environment, '{url}', names no machine.")
        # Without what may be secret: messages go into logs.
        self._shown = str(parsed.copy_with(username=None, password=None, query=None))
        key = os.environ.get(KEY_VARIABLE)
        self._client = httpx2.Client(
            headers={'Authorization': f'Bearer {key}'} if key else {},
            limits=httpx2.Limits(max_connections=LANES, max_keepalive_connections=LANES),
        )

    @property
    def lanes(self) -> int:
        """As `Host.lanes`."""
        return LANES

    @cached_property
    def told(self) -> Told:
        """What the server tells of its environment. Raises WorldError where it is not there, or tells nothing."""
        try:
            status, answer = self._asked('GET', 'environment', None, ALLOWANCE)
        except Fault as fault:
            raise WorldError(
                f'{fault.reason} Start it: align-anything serve-environment NAME, and give its address.'
            ) from fault
        except WorldError as error:
            raise self._is_none(str(error)) from error
        if status != OK:
            raise WorldError(f'{self._shown} answered {status}: {_reason(answer)}')
        try:
            return Told.model_validate(answer)
        except ValidationError as error:
            raise self._is_none(f'{error.errors()[0]["msg"]}.') from error

    def _is_none(self, reason: str) -> WorldError:
        return WorldError(
            f'{self._shown} is no server of an environment: {reason} Start one with align-anything serve-environment.'
        )

    def capacity(self, name: str) -> int | None:
        """As `Host.capacity`."""
        return self.told.capacity

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        """As `Host.make`. Raises WorldError for a row that names an environment, or arguments."""
        if name.rstrip('/') != self.url or kwargs:
            raise WorldError(f'the row names {name} and {dict(kwargs)}, but {self._shown} has one environment for all.')
        return Elsewhere(self, self._shown, {})

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """As `Askable.ask`."""
        # Environments of a server wait for each other.
        turn = self.told.timeout * math.ceil(LANES / self.told.lanes)
        closes = message['call'] == 'close'
        try:
            status, answer = self._asked('POST', 'ask', to_bytes(message), turn + ALLOWANCE, patient=not closes)
        except Unreachable:
            # What was to be closed has ended with its server.
            if closes:
                raise Lost from None
            raise
        if status == GONE:
            raise Lost
        if status != OK:
            raise Fault(f'{self._shown} answered {status}: {_reason(answer)}')
        return answer

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _asked(
        self, method: str, path: str, content: bytes | None, seconds: float, patient: bool = True
    ) -> tuple[int, Any]:
        """The status and the record that are answered.

        A server that cannot be reached is asked again for a while, by who is `patient`.
        """
        begun = time.monotonic()
        while True:
            try:
                return self._answer(method, path, content, begun + seconds)
            except httpx2.ConnectError as error:
                if not patient or time.monotonic() - begun > ALLOWANCE:
                    raise Unreachable(f'{self._shown} cannot be reached: {error}.') from error
                time.sleep(PAUSE)
            except (httpx2.TimeoutException, TimeoutError) as error:
                raise Fault(f'{self._shown} did not answer within {seconds:g} s.') from error
            except httpx2.HTTPError as error:
                raise Fault(f'{self._shown} broke off: {type(error).__name__}: {error}.') from error

    def _answer(self, method: str, path: str, content: bytes | None, end: float) -> tuple[int, Any]:
        headers = {} if content is None else {'Content-Type': 'application/json'}
        left = max(PAUSE, end - time.monotonic())
        found = bytearray()
        request = self._client.stream(method, f'{self.url}/{path}', content=content, headers=headers, timeout=left)
        with request as response:
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) > MOST_BYTES:
                    raise Fault(f'{self._shown} answered more than the {MOST_BYTES} bytes that a message may have.')
                if time.monotonic() > end:
                    raise TimeoutError
        return response.status_code, from_bytes(bytes(found))


def _reason(answer: Any) -> str:
    error = answer.get('error') if isinstance(answer, Mapping) else None
    said = error.get('message') if isinstance(error, Mapping) else error
    return str(said or 'no reason given')
