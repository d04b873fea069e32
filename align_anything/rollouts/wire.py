"""What goes between a run and a server that generates for it: a JSON record and tensors, as one safetensors message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from align_anything.core.errors import SampleError
from align_anything.rollouts.vllm_engine import Generated, Request

RECORD = 'record'
LENGTH_BYTES = 8


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
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
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
        return [_request(record, tensors) for record in records]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SampleError(f'these are no requests: {error!r}') from error


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


def _request(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Request:
    media = {kind: [_read(item, tensors) for item in items] for kind, items in record['media'].items()}
    parameters = dict(record['parameters'])
    if parameters.get('logit_bias'):
        # Keys of JSON are text.
        parameters['logit_bias'] = {int(token): bias for token, bias in parameters['logit_bias'].items()}
    return Request({**record['prompt'], **({'multi_modal_data': media} if media else {})}, parameters)


def _read(item: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    numbers = tensors[item['tensor']].numpy()
    if 'rate' in item:
        return numbers, item['rate']
    if 'metadata' in item:
        return numbers, item['metadata']
    return Image.fromarray(numbers)
