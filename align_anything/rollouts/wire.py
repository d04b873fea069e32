"""What goes between a run and a server that generates for it: a JSON record and tensors, as one safetensors message."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from torch import Tensor

from align_anything.core.errors import SampleError
from align_anything.core.types import MediaKind
from align_anything.rollouts.vllm_engine import Generated, Request

RECORD = 'record'
RUN_HEADER = 'x-run-id'
"""The HTTP header that says which run sends a message."""
LENGTH_BYTES = 8
PROBLEMS_TOLD = 5
STRICT = ConfigDict(extra='forbid', strict=True)


def pack(record: Any, tensors: Mapping[str, Tensor]) -> bytes:
    """Returns a record of plain values, and tensors by name, as one message."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(on_cpu, {RECORD: json.dumps(record)})


def unpack(message: bytes) -> tuple[Any, dict[str, Tensor]]:
    """Returns what was packed. Raises SampleError for anything else."""
    try:
        tensors = safetensors.torch.load(message)
        length = int.from_bytes(message[:LENGTH_BYTES], 'little')
        header = json.loads(message[LENGTH_BYTES : LENGTH_BYTES + length])
        return json.loads(header['__metadata__'][RECORD]), tensors
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SampleError(f'this is no message of a rollout: {error!r}') from error


def pack_requests(requests: Sequence[Request], held: Collection[str] = ()) -> bytes:
    """Returns requests as a message, images as pixels, audio and videos as they were decoded.

    A medium with a name goes once, and not at all where the name is among those that the other side has, `held`.
    """
    tensors: dict[str, Tensor] = {}
    known = {*held}
    records = []
    for number, request in enumerate(requests):
        prompt = {'prompt_token_ids': request.prompt['prompt_token_ids']}
        media: dict[MediaKind, list[dict[str, Any]]] = {}
        for kind, index, item, name in _media_of(request):
            if name in known:
                record = {'name': name}
            elif name is None:
                record = _written(item, f'{number}/{kind}/{index}', tensors)
            else:
                record = {**_written(item, name, tensors), 'name': name}
                known.add(name)
            media.setdefault(kind, []).append(record)
        records.append({'prompt': prompt, 'media': media, 'parameters': request.parameters})
    return pack(records, tensors)


def unpack_requests(message: bytes, held: Mapping[str, Any] = MappingProxyType({})) -> list[Request]:
    """Returns the requests of a message, media out of those `held` by name where it has the name alone.

    Raises SampleError for anything else.
    """
    records, tensors = unpack(message)
    known = dict(held)
    try:
        return [_request(record, tensors, known) for record in _RECORDS.validate_python(records)]
    except ValidationError as error:
        raise SampleError(f'these are no requests: {problems_of(error)}') from error


def named_media(requests: Sequence[Request]) -> dict[str, Any]:
    """Returns the media of requests that have a name, by it."""
    return {name: item for request in requests for _, _, item, name in _media_of(request) if name is not None}


def call_of(name: str) -> tuple[str, str]:
    """Returns who named a medium, and in which call: what stands before the slashes in its name."""
    owner, _, call = name.rpartition('/')[0].partition('/')
    return owner, call


def _media_of(request: Request) -> Iterator[tuple[MediaKind, int, Any, str | None]]:
    """The media of a request: the kind of each, its number among those of the kind, itself, and its name."""
    names = request.prompt.get('multi_modal_uuids', {})
    for kind, items in request.prompt.get('multi_modal_data', {}).items():
        for index, item in enumerate(items):
            yield kind, index, item, names[kind][index] if kind in names else None


def problems_of(error: ValidationError) -> str:
    """Says what is wrong with a record, without what it is: that may be long."""
    found = [f'{".".join(map(str, problem["loc"]))}: {problem["msg"]}' for problem in error.errors()[:PROBLEMS_TOLD]]
    return '; '.join([*found, *(['…'] if error.error_count() > PROBLEMS_TOLD else [])])


def pack_generated(generated: Sequence[Generated]) -> bytes:
    """Returns what was generated as a message."""
    return pack([[item.prompt_ids, item.responses, item.cached] for item in generated], {})


def unpack_generated(message: bytes) -> list[Generated]:
    """Returns what a message says was generated. Raises SampleError for anything else."""
    records, _ = unpack(message)
    return [
        Generated(prompt_ids, [(ids, logprobs) for ids, logprobs in responses], cached)
        for prompt_ids, responses, cached in records
    ]


def _written(item: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Puts the numbers of a medium in vLLM's form among the tensors; returns what else there is to know of it."""
    if isinstance(item, Image.Image):
        tensors[name] = torch.from_numpy(np.array(item.convert('RGB')))
        return {'tensor': name}
    numbers, description = item
    tensors[name] = torch.from_numpy(np.ascontiguousarray(numbers))
    return {'tensor': name, 'rate' if isinstance(description, int) else 'metadata': description}


class _Prompt(BaseModel):
    model_config = STRICT

    prompt_token_ids: list[NonNegativeInt] = Field(min_length=1)


class _Medium(BaseModel):
    model_config = STRICT

    tensor: str | None = None
    name: str | None = Field(None, min_length=1)
    rate: PositiveInt | None = None
    metadata: dict[str, Any] | None = None


class _Record(BaseModel):
    model_config = STRICT

    prompt: _Prompt
    media: dict[MediaKind, list[_Medium]]
    parameters: dict[str, Any]


_RECORDS = TypeAdapter(list[_Record])
_BIAS = TypeAdapter(dict[NonNegativeInt, FiniteFloat])


def _request(record: _Record, tensors: Mapping[str, Tensor], known: dict[str, Any]) -> Request:
    """The request of a record; adds to what media are `known` by name."""
    media = {kind: [_read(kind, item, tensors, known) for item in items] for kind, items in record.media.items()}
    names = {kind: [item.name for item in items] for kind, items in record.media.items()}
    if len({name is None for own in names.values() for name in own}) > 1:
        raise SampleError('some media of a request have a name and some have none.')
    parameters = record.parameters
    if parameters.get('logit_bias'):
        # Keys of JSON are text.
        parameters = {**parameters, 'logit_bias': _BIAS.validate_python(parameters['logit_bias'])}
    prompt: dict[str, Any] = {'prompt_token_ids': record.prompt.prompt_token_ids}
    if any(media.values()):
        prompt['multi_modal_data'] = media
    if any(name is not None for own in names.values() for name in own):
        prompt['multi_modal_uuids'] = names
    return Request(prompt, parameters)


def _read(kind: MediaKind, item: _Medium, tensors: Mapping[str, Tensor], known: dict[str, Any]) -> Any:
    if item.tensor is None and item.name is not None:
        if item.name not in known:
            raise SampleError(f"the medium '{item.name}' was never sent, or is not held any more.")
        return known[item.name]
    medium = _new(kind, item, tensors)
    if item.name is not None:
        known[item.name] = medium
    return medium


def _new(kind: MediaKind, item: _Medium, tensors: Mapping[str, Tensor]) -> Any:
    tensor = tensors.get(item.tensor or '')
    if tensor is None:
        raise SampleError(f"there is no tensor '{item.tensor}' in this message, which a medium should be.")
    if not _FORMS[kind](tensor, item):
        raise SampleError(
            f"the tensor '{item.tensor}', {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}, is not of "
            f'the form of {kind} media.'
        )
    numbers = tensor.numpy()
    if kind == 'image':
        return Image.fromarray(numbers)
    return numbers, item.rate if kind == 'audio' else item.metadata


def _is_image(tensor: Tensor, item: _Medium) -> bool:
    """`(height, width, RGB)`, and nothing beside it."""
    pixels = tensor.dtype == torch.uint8 and tensor.ndim == 3 and tensor.shape[-1] == 3 and tensor.numel() > 0
    return pixels and item.rate is None and item.metadata is None


def _is_audio(tensor: Tensor, item: _Medium) -> bool:
    """`(samples,)` or `(samples, channels)`, at a rate."""
    samples = tensor.dtype in (torch.float32, torch.float64) and tensor.ndim in (1, 2) and tensor.numel() > 0
    return samples and item.rate is not None and item.metadata is None


def _is_video(tensor: Tensor, item: _Medium) -> bool:
    """`(frames, height, width, RGB)`, with what is known of it."""
    frames = tensor.dtype == torch.uint8 and tensor.ndim == 4 and tensor.shape[-1] == 3 and tensor.numel() > 0
    return frames and item.rate is None and item.metadata is not None


_FORMS: dict[MediaKind, Callable[[Tensor, _Medium], bool]] = {
    'image': _is_image,
    'audio': _is_audio,
    'video': _is_video,
}
