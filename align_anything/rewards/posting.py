"""Requests to a service, sent again while it helps."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from align_anything.core.errors import RewardError
from align_anything.core.logging import get_logger

logger = get_logger(__name__)

FIRST_DELAY, LONGEST_DELAY, LONGEST_ASKED_FOR = 0.5, 30.0, 600.0
OK, SERVER_ERROR = 200, 500
PASSING = (408, 429)


class Service:
    """A service that JSON is posted to. One connection is kept open for each thread that asks.

    Args:
        name: what messages call it, before its address.
        url: its address. Certificates are verified.
        timeout: seconds without any word from it after which a request has failed.
        retries: how often a request is sent again that got no answer, or a status of 408, 429 or from 500 up. The pause
            before it doubles each time, up to half a minute, less a random part, and is at least what `Retry-After`
            asks for, up to ten minutes.
        key: sent with each request as its bearer's; no message has it.
    """

    def __init__(self, name: str, url: str, timeout: float, retries: int, key: str = '') -> None:
        self.url, self.retries, self._key = url, retries, key
        # Without what may be secret: messages go into logs.
        self.name = f'{name} {httpx2.URL(url).copy_with(username=None, password=None, query=None)}'
        headers = {'Authorization': f'Bearer {key}'} if key else {}
        self._client = httpx2.Client(timeout=timeout, headers=headers)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def post(self, content: dict[str, Any]) -> Any:
        """Returns the JSON that the service answers, None for what is none.

        Raises RewardError when it is gone, or refuses the request.
        """
        response = self._answer(content)
        answer = _json(response)
        if response.status_code != OK:
            raise RewardError(f'{self.name} answered {response.status_code}: {self._reason(answer)}.')
        return answer

    def _answer(self, content: dict[str, Any]) -> httpx2.Response:
        """Returns the first answer of the service that it does not help to ask for again."""
        attempts = Retrying(
            stop=stop_after_attempt(self.retries + 1),
            wait=_pause,
            retry=retry_if_exception_type(_Passing),
            after=self._tell,
            reraise=True,
        )
        try:
            return attempts(self._ask, content)
        except _Passing as failure:
            raise RewardError(
                f'{self.name} failed {self.retries + 1} time(s) in a row, at last with {failure}. Check that it runs '
                'and can be reached from here, and what it logs.'
            ) from failure.__cause__

    def _ask(self, content: dict[str, Any]) -> httpx2.Response:
        try:
            response = self._client.post(self.url, json=content)
        except httpx2.TransportError as error:
            raise _Passing(f'{type(error).__name__}: {error}') from error
        if response.status_code not in PASSING and response.status_code < SERVER_ERROR:
            return response
        failure = f'status {response.status_code}: {self._reason(_json(response))}'
        asked_for = _seconds(response.headers.get('Retry-After', ''))
        if asked_for > LONGEST_ASKED_FOR:
            raise RewardError(
                f'{self.name} failed with {failure}, and asks to be left alone for {asked_for:.0f} s, longer than '
                f'{LONGEST_ASKED_FOR:.0f}. Go on from the last checkpoint when it is back.'
            )
        raise _Passing(failure, asked_for)

    def _reason(self, answer: Any) -> str:
        said = str(answer['error']) if isinstance(answer, dict) and 'error' in answer else 'no reason given'
        return said.replace(self._key, '…') if self._key else said

    def _tell(self, state: RetryCallState) -> None:
        failure = state.outcome.exception()
        logger.warning('%s failed (%s), attempt %d of %d', self.name, failure, state.attempt_number, self.retries + 1)


class _Passing(Exception):
    """A failure that may pass, and for how many seconds the service asks not to be asked again."""

    def __init__(self, reason: str, asked_for: float = 0.0) -> None:
        super().__init__(reason)
        self.asked_for = asked_for


def _pause(state: RetryCallState) -> float:
    """Returns the seconds before the next attempt.

    Not from the generators that a run seeds: a pause must not change what it samples.
    """
    doubled = min(FIRST_DELAY * 2 ** (state.attempt_number - 1), LONGEST_DELAY)
    random_part = random.SystemRandom().uniform(0.5, 1.0)
    return max(doubled * random_part, state.outcome.exception().asked_for * (1 + random_part / 10))


def _seconds(retry_after: str) -> float:
    """Returns what a `Retry-After` asks for, seconds or a date (RFC 9110, 10.2.3); 0 where it says neither."""
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, (date.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
