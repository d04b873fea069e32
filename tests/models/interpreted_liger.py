"""`python -m tests.models.interpreted_liger [--cuda] FOLDER…`: the largest differences that kernels of Liger make.

In a process of its own: Triton's interpreter is chosen when it is imported, and Liger changes modules of transformers.
Prints a line of JSON for each: its family, the modules that compute by Liger, and differences of logits and gradients,
relative to the largest ones.
"""

from __future__ import annotations

import json
import os
import sys

ON_DEVICE = '--cuda' in sys.argv
if not ON_DEVICE:
    os.environ['TRITON_INTERPRET'] = '1'

import numpy  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from align_anything.models.liger import apply_liger  # noqa: E402
from align_anything.models.pretrained_model import load_model, load_spec  # noqa: E402
from tests.models.common import model_inputs, stir  # noqa: E402

_inner = interpreter._implicit_cvt


def _scalar(value: object) -> object:
    """What the compiler makes of a number with a point; the interpreter leaves it as it is."""
    if isinstance(value, float):
        return tl.tensor(interpreter.TensorHandle(numpy.array([value], numpy.float32), tl.float32), tl.float32)
    return _inner(value)


def interpret() -> None:
    """Has Triton's interpreter take what kernels of Liger are called with, and what they call of the device."""
    from liger_kernel.ops import geglu, layer_norm, rms_norm

    interpreter._implicit_cvt = _scalar
    rms_norm.rsqrt = layer_norm.rsqrt = _rsqrt
    geglu.tanh = _tanh


@triton.jit
def _rsqrt(value):
    return 1.0 / tl.sqrt(value)


@triton.jit
def _tanh(value):
    return 2.0 * tl.sigmoid(2.0 * value) - 1.0


def computed(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    logits = model.train()(**inputs, use_cache=False).logits
    logits.square().mean().backward()
    grads = {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}
    return {'logits': logits.detach(), **grads}


def compare(folder: str) -> dict[str, object]:
    spec = load_spec(folder)
    model = load_model(folder, spec.components)
    stir(model)
    inputs = model_inputs(spec)
    if ON_DEVICE:
        model, inputs = model.cuda(), {name: value.cuda() for name, value in inputs.items()}
    wanted, names = computed(model, inputs), set(model.state_dict())
    apply_liger(model)
    found = computed(model, inputs)
    by_liger = [own.forward for own in model.modules() if 'liger' in getattr(own.forward, '__module__', '')]
    largest = max(float(own.abs().max()) for name, own in wanted.items() if name != 'logits')
    # Of some gradients, as of the biases of keys, nothing but rounding is left.
    off = {
        name: float((found[name] - own).abs().max()) / max(float(own.abs().max()), 1e-4 * largest)
        for name, own in wanted.items()
    }
    worst = max(off, key=off.__getitem__)
    return {
        'family': spec.model_type,
        'kernels': sorted({forward.__qualname__ for forward in by_liger}),
        'modules': len(by_liger),
        'off': off[worst],
        'worst': worst,
        'same_names': names == set(model.state_dict()),
        'own_forward': 'forward' in vars(model),
    }


if __name__ == '__main__':
    if not ON_DEVICE:
        interpret()
    for folder in (word for word in sys.argv[1:] if word != '--cuda'):
        print(json.dumps(compare(folder)), flush=True)
