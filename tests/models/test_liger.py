"""Kernels of Liger: where they are in force and where not, and what they compute, by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.core.errors import SettingsError
from align_anything.models import liger
from align_anything.models.activations import activations_of
from align_anything.models.pretrained_model import load_model, load_spec

Tiny = Callable[..., Path]
# Two norms in a layer, one behind the last one; Gemma has more.
COMPUTED = {'qwen2': (2, 5), 'qwen2_vl': (2, 5), 'llava': (2, 5), 'gemma3': (2, 13)}


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SettingsError, match=r'use_liger_kernel needs liger-kernel: pip install "align-anything.liger.'):
        liger.require_liger()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a device')
def test_without_a_device_they_are_not_in_force() -> None:
    assert liger.why_without_liger('llama') == 'its Triton kernels need a CUDA device, and there is none'


@pytest.mark.extended
def test_families_that_it_has_none_for_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert liger.why_without_liger('opt') == 'liger-kernel has none for opt'
    assert liger.why_without_liger('qwen2_5_vl') is None


def computed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command, root = [sys.executable, '-m', 'tests.models.interpreted_liger'], Path(__file__).resolve().parents[2]
    ended = subprocess.run([*command, *arguments], cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended


@pytest.mark.extended
def test_they_compute_what_the_family_does(tiny: Tiny) -> None:
    """Forward and backward of whole models, on the CPU."""
    ended = computed(*(str(tiny(family)) for family in COMPUTED))
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{')]
    assert [one['family'] for one in told] == list(COMPUTED)
    for one in told:
        mlps, norms = COMPUTED[one['family']]
        assert one['off'] < 1e-4, one
        assert one['same_names'] and not one['own_forward']
        assert one['modules'] >= mlps + norms, one


@pytest.mark.extended
def test_the_estimate_of_activations_counts_what_is_fused(tiny: Tiny) -> None:
    spec = load_spec(tiny('qwen2'))
    model = load_model(tiny('qwen2'), spec.components)
    text, tokens = spec.config.get_text_config(), 100
    layers, width, inner = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    less = layers * inner + (2 * layers + 1) * width
    plain = activations_of(model, spec, tokens, 4, recomputes=None)
    assert activations_of(model, spec, tokens, 4, recomputes=None, fused=True) == pytest.approx(
        plain - 4 * tokens * less
    )


@pytest.mark.gpu
@pytest.mark.parametrize('family', list(COMPUTED))
def test_on_a_device_they_compute_what_the_family_does(family: str, tiny: Tiny) -> None:
    """In a process of its own, since Liger changes modules of transformers."""
    ended = computed('--cuda', str(tiny(family)))
    (told,) = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{')]
    assert told['off'] < 1e-3, told
