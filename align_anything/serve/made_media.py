"""`POST /v1/images/generations` and `/v1/audio/speech`: answers that are a medium and nothing else."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy

from align_anything.core.types import Audio, MediaKind, Response, decoded_medium
from align_anything.datasets.media.writing import png, wav
from align_anything.serve.answering import Wish
from align_anything.serve.errors import SERVER_ERROR, RequestError, json_answer
from align_anything.serve.requests import ImagesBody, Sampled, SpeechBody

if TYPE_CHECKING:
    from fastapi import Request
    from fastapi.responses import Response as Answer

    from align_anything.serve.server import Server

TYPES = {
    'wav': 'audio/wav',
    'mp3': 'audio/mpeg',
    'flac': 'audio/flac',
    'opus': 'audio/ogg',
    'pcm': 'audio/pcm',
}
LIBSNDFILE = {'mp3': ('MP3', 'MPEG_LAYER_III'), 'flac': ('FLAC', 'PCM_16'), 'opus': ('OGG', 'OPUS')}
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
PCM_RATE = 24000
FULL_SCALE = 32767


async def images(server: Server, request: Request) -> Answer:
    """Returns images of a prompt, as PNG files in base64."""
    _require(server, 'image', '/v1/images/generations')
    asked = await server.body(request, ImagesBody)
    server.check_model(asked.model)
    found = await _made(server, request, 'image', asked.prompt, asked)
    data = [{'b64_json': base64.b64encode(png(image)).decode()} for image in found]
    return json_answer({'created': server.now(), 'data': data})


async def speech(server: Server, request: Request) -> Answer:
    """Returns a sound for a text, as an audio file."""
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import Response as Answer

    _require(server, 'audio', '/v1/audio/speech')
    asked = await server.body(request, SpeechBody)
    server.check_model(asked.model)
    (sound,) = await _made(server, request, 'audio', asked.input, asked)
    content = await run_in_threadpool(audio_file, sound, asked.response_format)
    return Answer(content, media_type=TYPES[asked.response_format])


def audio_file(sound: Audio, form: str) -> bytes:
    """Returns audio in one of the forms of `TYPES`; `pcm` is 16 bits at 24 kHz without a header, as OpenAI has it."""
    import soundfile

    from align_anything.datasets.media.audio import resampled

    if form == 'wav':
        return wav(sound, rounded=True)
    if form == 'pcm':
        samples = numpy.clip(resampled(sound, PCM_RATE).samples, -1, 1) * FULL_SCALE
        return samples.astype('<i2').tobytes()
    known = {'opus': OPUS_RATES, 'mp3': MP3_RATES}.get(form, (sound.rate,))
    # The next one above loses nothing.
    rate = sound.rate if sound.rate in known else min((rate for rate in known if rate > sound.rate), default=known[-1])
    sound, file = resampled(sound, rate), io.BytesIO()
    container, subtype = LIBSNDFILE[form]
    soundfile.write(file, numpy.clip(sound.samples, -1, 1), rate, format=container, subtype=subtype)
    return file.getvalue()


def _require(server: Server, kind: MediaKind, path: str) -> None:
    """Raises RequestError where the model writes no media of this kind."""
    answerer = server.answerer
    if kind not in answerer.emits:
        written = [*(['text'] if answerer.writes_text else []), *sorted(answerer.emits)]
        raise RequestError(
            f'{path}: the model {server.name!r} writes {" and ".join(written)}, but no {kind}.', code='not_emitted'
        )


async def _made(server: Server, request: Request, kind: MediaKind, text: str, asked: Sampled) -> list[Any]:
    wish = Wish(asked.n, steps=asked.steps, guidance_scale=asked.guidance_scale, kinds=frozenset({kind}))
    prompt = await server.prompt(lambda: [{'role': 'user', 'content': text}], wish)
    responses = await server.responses(request, server.submit(prompt, asked.seed))
    found = [_medium(response, kind) for response in responses]
    if None in found:
        raise RequestError(
            f'an answer holds no whole {kind}: it was clipped at the length limit, or its codec decodes nothing.',
            status=SERVER_ERROR,
        )
    return found


def _medium(response: Response, kind: MediaKind) -> Any:
    found = (decoded_medium(part) for part in response.parts if part['type'] == kind)
    return next((medium for medium in found if medium is not None), None)
