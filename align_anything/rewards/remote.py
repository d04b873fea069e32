"""Rewards from a service on the network."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import httpx2

from align_anything.core.errors import RewardError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.rewards.base import Completion, NoGroundTruth, check_values, ground_truth
from align_anything.rewards.messages import text_of, to_json

logger = get_logger(__name__)

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500


class RemoteReward:
    """A reward function that asks a service, such as `python -m align_anything.rewards.server`.

    It posts lists with one entry for each completion: `prompts` (text of the last user turn), `responses` (text),
    `conversations` (all turns of the prompt), `messages` (responses and their media), `prefixes` (what stands between
    the last turn and the response), `prefills` (the end of it that belongs to the answer, such as `<think>\n`: it and
    the response are the whole answer; left out where no prompt begins one), `ground_truths`, `lengths` and `finished`.
    It expects `{"rewards": [float]}`, or `{"error": str}` with a status of 400 or more. One connection is kept open.

    Args:
        url: address of the service, such as `http://localhost:6000/get_reward`. Certificates are verified.
        timeout: seconds without any word from the service after which a request has failed.
        retries: how often a request is sent again that got no answer, or a status of 429 or from 500 up. The pause
            before it doubles each time, up to half a minute, less a random part, so that ranks do not come back all
            at once.
        batch_size: completions in one request; None sends all in one.
        send_media: sends images, videos and audio along, as data URIs.

    Raises:
        SettingsError: `url` is no http or https address, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 100.0,
        retries: int = 3,
        *,
        batch_size: int | None = None,
        send_media: bool = False,
    ) -> None:
        problems = []
        if not url.startswith(('http://', 'https://')):
            problems.append(
                f"reward service: '{url}' is no address; write for instance http://localhost:6000/get_reward"
            )
        if timeout <= 0 or retries < 0 or (batch_size is not None and batch_size < 1):
            problems.append(
                'reward service: the time-out must be above 0, retries not below it, and a batch holds at least 1, but '
                f'they are {timeout}, {retries} and {batch_size}'
            )
        if problems:
            raise SettingsError(problems)
        self.url, self.retries, self.batch_size, self.send_media = url, retries, batch_size, send_media
        # Without what may be secret: messages go into logs.
        self.name = f'reward service {httpx2.URL(url).copy_with(username=None, password=None, query=None)}'
        self._client = httpx2.Client(timeout=timeout)

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Returns the reward of each completion.

        Raises `RewardError` when the service is gone, refuses the request, or answers with anything but one finite
        number for each completion.
        """
        size = self.batch_size or max(1, len(completions))
        batches = [completions[start : start + size] for start in range(0, len(completions), size)]
        return [reward for batch in batches for reward in self._rewards(batch)]

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _rewards(self, batch: Sequence[Completion]) -> list[float]:
        prefills = [completion.prefilled for completion in batch]
        response = self._answer(
            {
                'prompts': [text_of(completion.conversation) for completion in batch],
                'responses': [completion.response for completion in batch],
                'conversations': [to_json(completion.conversation, self.send_media) for completion in batch],
                'messages': [to_json([completion.message], self.send_media)[0] for completion in batch],
                'prefixes': [completion.prefix for completion in batch],
                **({'prefills': prefills} if any(prefills) else {}),
                'ground_truths': [_truth(completion) for completion in batch],
                'lengths': [completion.length for completion in batch],
                'finished': [completion.finished for completion in batch],
            }
        )
        answer = _json(response)
        if response.status_code != 200:
            raise RewardError(f'{self.name} answered {response.status_code}: {_reason(answer)}.')
        if not isinstance(answer, dict) or 'rewards' not in answer:
            raise RewardError(f'{self.name} answered without "rewards"; it should send {{"rewards": [number, …]}}.')
        return check_values(self.name, answer['rewards'], batch)

    def _answer(self, content: dict[str, Any]) -> httpx2.Response:
        """Returns the first answer of the service that it does not help to ask for again."""
        delay = FIRST_DELAY
        for attempt in range(self.retries + 1):
            if attempt:
                # Not from the generators that a run seeds: a pause must not change what it samples.
                time.sleep(delay * random.SystemRandom().uniform(0.5, 1.0))
                delay = min(2 * delay, LONGEST_DELAY)
            try:
                response = self._client.post(self.url, json=content)
            except httpx2.TransportError as error:
                failure, cause = f'{type(error).__name__}: {error}', error
            else:
                if response.status_code != TOO_MANY_REQUESTS and response.status_code < SERVER_ERROR:
                    return response
                failure, cause = f'status {response.status_code}: {_reason(_json(response))}', None
            logger.warning('%s failed (%s), attempt %d of %d', self.name, failure, attempt + 1, self.retries + 1)
        raise RewardError(
            f'{self.name} failed {self.retries + 1} time(s) in a row, at last with {failure}. Check that it runs and '
            'can be reached from here, and what it logs.'
        ) from cause


def _truth(completion: Completion) -> str | None:
    try:
        return ground_truth(completion)
    except NoGroundTruth:
        return None


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _reason(answer: Any) -> str:
    return str(answer['error']) if isinstance(answer, dict) and 'error' in answer else 'no reason given'
