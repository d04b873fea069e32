"""What goes between a run and a server that generates for it: a JSON record and tensors, as one safetensors message."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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


def pack_requests(requests: Sequence[Request]) -> bytes:
    """Returns requests as a message, images as pixels, audio and videos as they were decoded."""
    tensors: dict[str, Tensor] = {}
    records = []
    for number, request in enumerate(requests):
        prompt = dict(request.prompt)
        media = {
            kind: [_written(item, f'{number}/{kind}/{index}', tensors) for index, item in enumerate(items)]
            for kind, items in prompt.pop('multi_modal_data', {}).items()
        }
        records.append({'prompt': prompt, 'media': media, 'parameters': request.parameters})
    return pack(records, tensors)


def unpack_requests(message: bytes) -> list[Request]:
    """Returns the requests of a message. Raises SampleError for anything else."""
    records, tensors = unpack(message)
    try:
        return [_request(record, tensors) for record in _RECORDS.validate_python(records)]
    except ValidationError as error:
        raise SampleError(f'these are no requests: {problems_of(error)}') from error


def problems_of(error: ValidationError) -> str:
    """Says what is wrong with a record, without what it is: that may be long."""
    found = [f'{".".join(map(str, problem["loc"]))}: {problem["msg"]}' for problem in error.errors()[:PROBLEMS_TOLD]]
    return '; '.join([*found, *(['…'] if error.error_count() > PROBLEMS_TOLD else [])])


def pack_generated(generated: Sequence[Generated]) -> bytes:
    """Returns what was generated as a message."""
    return pack([[item.prompt_ids, item.responses] for item in generated], {})


def unpack_generated(message: bytes) -> list[Generated]:
    """Returns what a message says was generated. Raises SampleError for anything else."""
    records, _ = unpack(message)
    return [
        Generated(prompt_ids, [(ids, logprobs) for ids, logprobs in responses]) for prompt_ids, responses in records
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

    tensor: str
    rate: PositiveInt | None = None
    metadata: dict[str, Any] | None = None


class _Record(BaseModel):
    model_config = STRICT

    prompt: _Prompt
    media: dict[MediaKind, list[_Medium]]
    parameters: dict[str, Any]


_RECORDS = TypeAdapter(list[_Record])
_BIAS = TypeAdapter(dict[NonNegativeInt, FiniteFloat])


def _request(record: _Record, tensors: Mapping[str, Tensor]) -> Request:
    media = {kind: [_read(kind, item, tensors) for item in items] for kind, items in record.media.items()}
    parameters = record.parameters
    if parameters.get('logit_bias'):
        # Keys of JSON are text.
        parameters = {**parameters, 'logit_bias': _BIAS.validate_python(parameters['logit_bias'])}
    prompt: dict[str, Any] = {'prompt_token_ids': record.prompt.prompt_token_ids}
    return Request({**prompt, **({'multi_modal_data': media} if media else {})}, parameters)


def _read(kind: MediaKind, item: _Medium, tensors: Mapping[str, Tensor]) -> Any:
    tensor = tensors.get(item.tensor)
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
