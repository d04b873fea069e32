"""`POST /v1/chat/completions`, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from align_anything.core.errors import AlignAnythingError
from align_anything.core.types import Response
from align_anything.serve import errors
from align_anything.serve.answering import CallReader, Wish
from align_anything.serve.errors import RequestError, json_answer
from align_anything.serve.messages import message_of, rows_of
from align_anything.serve.requests import ChatBody
from align_anything.serve.scheduler import Job, Late

if TYPE_CHECKING:
    from fastapi import Request
    from fastapi.responses import Response as Answer

    from align_anything.serve.server import Server

Part = dict[str, Any]
END = None


async def answer(server: Server, request: Request) -> Answer:
    """Returns the responses to a conversation."""
    from fastapi.responses import StreamingResponse

    asked = await server.body(request, ChatBody)
    server.check_model(asked.model)
    reader, tools = None, []
    if asked.tools and asked.tool_choice != 'none':
        reader, tools = server.answerer.calls(), asked.tools
        if reader is None:
            raise RequestError(
                'the chat template of this model writes no tool calls, or in a form that is not known here: leave out '
                'tools.',
                param='tools',
            )
    limits, reads = server.limits.media, server.answerer.reads
    prompt = await server.prompt(lambda: rows_of(asked.messages, limits, reads), wish_of(asked), tools)
    head = {'id': f'chatcmpl-{secrets.token_hex(12)}', 'created': server.now(), 'model': server.name}
    if not asked.stream:
        job = server.submit(prompt, asked.seed)
        responses = await server.responses(request, job)
        choices = [choice_of(number, response, reader) for number, response in enumerate(responses)]
        whole = {**head, 'object': 'chat.completion', 'choices': choices, 'usage': usage_of(job, responses)}
        return json_answer(whole)
    loop, heard = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Part] | None]()

    def put(item: tuple[int, Part] | None) -> None:
        with suppress(RuntimeError):  # the server has ended, and nobody listens
            loop.call_soon_threadsafe(heard.put_nowait, item)

    job = server.submit(prompt, asked.seed, lambda which, part: put((which, part)))
    job.answer.add_done_callback(lambda _: put(END))
    begun = time.monotonic()
    # What goes wrong before anything is said is still told by the status of the answer.
    first = await server.unless_gone(request, heard.get(), job)
    if first is END and (error := job.answer.exception()) is not None:
        raise _refusal(error, server)
    server.metrics.first_part(time.monotonic() - begun)
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    events = _events(server, job, head, first, heard, reader, with_usage)
    return StreamingResponse(events, media_type='text/event-stream', headers={'Cache-Control': 'no-store'})


def wish_of(asked: ChatBody) -> Wish:
    """Returns how the responses to a request are to be sampled."""
    return Wish(
        responses=asked.n,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        repetition_penalty=asked.repetition_penalty,
        stop=tuple(asked.stop),
        steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        kinds=None if asked.modalities is None else frozenset(asked.modalities),
    )


def choice_of(number: int, response: Response, reader: CallReader | None) -> dict[str, Any]:
    """Returns a response as one of the choices of an answer."""
    message = message_of(response.parts)
    calls: list[dict[str, Any]] = []
    if reader is not None and message['content']:
        said, calls = reader.split(message['content'])
        if calls:
            message |= {'content': said or None, 'tool_calls': calls}
    return {'index': number, 'message': message, 'finish_reason': _why(response, calls), 'logprobs': None}


def usage_of(job: Job, responses: Sequence[Response]) -> dict[str, int]:
    """Returns what an answer took."""
    prompt, completion = job.prompt.length, sum(map(len, responses))
    return {'prompt_tokens': prompt, 'completion_tokens': completion, 'total_tokens': prompt + completion}


def _why(response: Response, calls: Sequence[Any]) -> str:
    return 'tool_calls' if calls else 'stop' if response.finished else 'length'


class _Growing:
    """What was sent of one response, and what is held back of it because it may be the beginning of a call."""

    def __init__(self, reader: CallReader | None) -> None:
        self._reader, self._text, self._sent = reader, '', 0

    def grown(self, part: Part) -> dict[str, Any]:
        """Returns the delta that says what is new, an empty one for nothing."""
        if part['type'] != 'text':
            found = message_of([part])
            return {key: value for key, value in found.items() if key not in ('role', 'content')}
        self._text += part['text']
        held = 0 if self._reader is None else self._reader.holds_back(self._text)
        return self._upto(len(self._text) - held)

    def rest(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Returns the delta of what is left, and the calls in it."""
        said, calls = (self._text, []) if self._reader is None else self._reader.split(self._text)
        delta = self._upto(len(said) if calls else len(self._text))
        if calls:
            delta['tool_calls'] = [{'index': number, **call} for number, call in enumerate(calls)]
        return delta, calls

    def _upto(self, end: int) -> dict[str, Any]:
        fresh, self._sent = self._text[self._sent : end], max(self._sent, end)
        return {'content': fresh} if fresh else {}


async def _events(
    server: Server,
    job: Job,
    head: dict[str, Any],
    first: tuple[int, Part] | None,
    heard: asyncio.Queue[tuple[int, Part] | None],
    reader: CallReader | None,
    with_usage: bool,
) -> AsyncIterator[str]:
    """Yields server-sent events. Where the client goes, whatever iterates closes this, and the job is given up."""
    growing = [_Growing(reader) for _ in range(job.wish.responses)]

    def event(number: int, delta: dict[str, Any], why: str | None = None) -> str:
        choice = {'index': number, 'delta': delta, 'finish_reason': why, 'logprobs': None}
        usage = {'usage': None} if with_usage else {}
        return _data({**head, 'object': 'chat.completion.chunk', 'choices': [choice], **usage})

    try:
        for number in range(job.wish.responses):
            yield event(number, {'role': 'assistant', 'content': ''})
        item = first
        while item is not END:
            which, part = item
            if delta := growing[which].grown(part):
                yield event(which, delta)
            item = await heard.get()
        if (error := job.answer.exception()) is not None:
            yield _data(_refusal(error, server).body)
            return
        responses = job.answer.result()
        server.count(job, responses)
        for number, (response, row) in enumerate(zip(responses, growing, strict=True)):
            delta, calls = row.rest()
            if delta:
                yield event(number, delta)
            yield event(number, {}, _why(response, calls))
        if with_usage:
            usage = usage_of(job, responses)
            yield _data({**head, 'object': 'chat.completion.chunk', 'choices': [], 'usage': usage})
        yield 'data: [DONE]\n\n'
    finally:
        job.give_up()


def _data(record: dict[str, Any]) -> str:
    return f'data: {json.dumps(record)}\n\n'


def _refusal(error: BaseException, server: Server) -> RequestError:
    """What is told of a job that failed."""
    if type(error) is Late:
        return server.late()
    if isinstance(error, AlignAnythingError):
        return RequestError(str(error), status=errors.SERVER_ERROR)
    server.log_failure(error)
    return RequestError(f'{type(error).__name__} in the server; its log says where.', status=errors.SERVER_ERROR)
