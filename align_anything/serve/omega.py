"""OMEGA's contract: `POST /api/v1/v2t` and `/api/v1/v2v`, a voice in, text or a voice out."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy

from align_anything.core.types import Response, decoded_medium
from align_anything.serve.answering import Wish
from align_anything.serve.errors import SERVER_ERROR, RequestError, json_answer
from align_anything.serve.messages import file_bytes
from align_anything.serve.requests import OmegaBody

if TYPE_CHECKING:
    from fastapi import Request
    from fastapi.responses import Response as Answer

    from align_anything.serve.server import Server

READERS = {(1, 0): numpy.lib.format.read_array_header_1_0, (2, 0): numpy.lib.format.read_array_header_2_0}


async def v2t(server: Server, request: Request) -> Answer:
    """Returns what the model answers to a voice, in words: `{"text"}`."""
    if not server.answerer.writes_text:
        raise RequestError(f'the model {server.name!r} writes no text.', code='not_emitted')
    response = await _answer(server, request, frozenset({'text'}))
    return json_answer({'text': ''.join(part['text'] for part in response.parts if part['type'] == 'text')})


async def v2v(server: Server, request: Request) -> Answer:
    """Returns what the model answers to a voice, as a voice: `{"audio_data", "sample_rate"}`."""
    if 'audio' not in server.answerer.emits:
        problem = f'the model {server.name!r} writes no audio; /api/v1/v2t answers in words.'
        raise RequestError(problem, code='not_emitted')
    response = await _answer(server, request, frozenset({'audio'}))
    sounds = [decoded_medium(part) for part in response.parts if part['type'] == 'audio']
    if not sounds or sounds[0] is None:
        problem = 'the answer holds no whole audio: it was clipped at the length limit, or its codec decodes nothing.'
        raise RequestError(problem, status=SERVER_ERROR)
    file = io.BytesIO()
    numpy.save(file, sounds[0].samples, allow_pickle=False)
    data = base64.b64encode(file.getvalue()).decode()
    return json_answer({'audio_data': data, 'sample_rate': sounds[0].rate})


async def _answer(server: Server, request: Request, kinds: frozenset[str]) -> Response:
    if 'audio' not in server.answerer.reads:
        raise RequestError(f'the model {server.name!r} reads no audio.', code='not_read')
    asked = await server.body(request, OmegaBody)

    def turns() -> list[dict[str, Any]]:
        sound = {'array': saved_array(file_bytes(asked.audio_data, 'audio_data')), 'sampling_rate': asked.sample_rate}
        return [{'role': 'user', 'content': [{'type': 'audio', 'audio': sound}]}]

    prompt = await server.prompt(turns, Wish(kinds=kinds))
    (response,) = await server.responses(request, server.submit(prompt, None))
    return response


def saved_array(file: bytes) -> numpy.ndarray:
    """Returns the samples in a file of `numpy.save`, without running or allocating what it may claim to hold.

    Raises RequestError for what is no such file, and for arrays of other things than numbers.
    """
    stream = io.BytesIO(file)
    try:
        read_header = READERS[numpy.lib.format.read_magic(stream)]
        shape, fortran, dtype = read_header(stream)
        values = numpy.frombuffer(file, dtype, offset=stream.tell()) if dtype.kind in 'iuf' else None
        if values is None or values.size != numpy.prod(shape, dtype=object):
            raise ValueError('it holds something else')
    except (ValueError, KeyError, TypeError, SyntaxError, EOFError) as error:
        raise RequestError('audio_data is no array of numbers as numpy.save writes it, in base64.') from error
    return values.reshape(shape, order='F' if fortran else 'C')
