"""Rewards from a service on the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from align_anything.core.errors import RewardError, SettingsError
from align_anything.core.types import BESIDE_CONTENT
from align_anything.rewards.base import Completion, NoGroundTruth, Values, check_values, ground_truth
from align_anything.rewards.messages import text_of, to_json
from align_anything.rewards.posting import Service


class RemoteReward:
    """A reward function that asks a service, such as `python -m align_anything.rewards.server`.

    It posts lists with one entry for each completion: `prompts` (text of the last user turn), `responses` (text),
    `conversations` (all turns of the prompt), `messages` (responses and their media), `prefixes` (what stands between
    the last turn and the response), `prefills` (the end of it that belongs to the answer, such as `<think>\n`: it and
    the response are the whole answer; left out where no prompt begins one), `ground_truths`, `lengths` and `finished`.
    It expects `{"rewards": [float]}`, or `{"error": str}` with a status of 400 or more; null is a reward that it does
    not give. One connection is kept open.

    Args:
        url: address of the service, such as `http://localhost:6000/get_reward`. Certificates are verified.
        timeout: seconds without any word from the service after which a request has failed.
        retries: how often a request is sent again that got no answer, or a status of 408, 429 or from 500 up. The pause
            before it doubles each time, up to half a minute, less a random part, so that ranks do not come back all
            at once; and is at least what `Retry-After` asks for, up to ten minutes.
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
        self.batch_size, self.send_media = batch_size, send_media
        self._service = Service('reward service', url, timeout, retries)

    def __call__(self, completions: Sequence[Completion]) -> Values:
        """Returns the reward of each completion, None where the service abstains.

        Raises `RewardError` when a text cannot be sent, before anything is; when the service is gone, refuses the
        request, or answers with anything but one finite number or null for each completion.
        """
        size = self.batch_size or max(1, len(completions))
        batches = [completions[start : start + size] for start in range(0, len(completions), size)]
        for completion in completions:
            check_texts(completion)
        return [reward for batch in batches for reward in self._rewards(batch)]

    def close(self) -> None:
        """Closes the connection."""
        self._service.close()

    def _rewards(self, batch: Sequence[Completion]) -> Values:
        prefills = [completion.prefilled for completion in batch]
        answer = self._service.post(
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
        if not isinstance(answer, dict) or 'rewards' not in answer:
            raise RewardError(
                f'{self._service.name} answered without "rewards"; it should send {{"rewards": [number, …]}}.'
            )
        return check_values(self._service.name, answer['rewards'], batch)


def check_texts(completion: Completion) -> None:
    """Raises `RewardError` for a text that is none: half of a surrogate pair, which UTF-8 cannot write."""
    for what, text in _texts(completion):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RewardError(
                f'{completion.source}: {what} has {text[error.start]!r} in it, half of a surrogate pair, which no '
                'service can be sent. Mend the row.'
            ) from error


def _texts(completion: Completion) -> Iterator[tuple[str, str]]:
    """All text of a completion that is sent, with what it is."""
    for message in completion.conversation:
        yield 'a role', message['role']
        for part in message['content']:
            if part['type'] == 'text':
                yield 'the prompt', part['text']
        for key in BESIDE_CONTENT:
            for text in _strings(message.get(key)):
                yield f'`{key}` of the prompt', text
    yield 'the response', completion.response
    yield 'the prefix', completion.prefix
    yield 'the golden answer', _truth(completion) or ''


def _strings(value: Any) -> Iterator[str]:
    """All text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _strings(item)


def _truth(completion: Completion) -> str | None:
    try:
        return ground_truth(completion)
    except NoGroundTruth:
        return None
