"""Prompt and media once per Example, and no tensor as long as the rows and as wide as the vocabulary."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from align_anything.algorithms.sft import SFT
from align_anything.core.types import Example, map_tensors
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_model, set_text_attention
from align_anything.policies.token import logprob
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.invariants.families import MEDIA, MULTIMODAL, load_plain, ordinary, reference_units, rows
from tests.invariants.runs import assembled, fork, settings, zero_file

Stirred = Callable[[str], Path]


def encoded_items(model: nn.Module, spec: FamilySpec) -> Counter[str]:
    """Grows by the number of images (tiles, frames) and audio clips in each call of each tower."""
    seen: Counter[str] = Counter()

    def watch(component: str, tower: nn.Module) -> None:
        signature, calls = inspect.signature(tower.forward), spec.tower_calls(component)

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            bound = signature.bind(*args, **kwargs).arguments
            everything = {**bound, **bound.pop('kwargs', {})}
            tensors = {name: value for name, value in everything.items() if isinstance(value, Tensor)}
            seen[component] += len(calls.items(tensors))

        tower.register_forward_pre_hook(note, with_kwargs=True)

    for component in ('vision_tower', 'audio_tower'):
        for prefix in spec.components.get(component, ()):
            watch(component, model.get_submodule(prefix))
    return seen


@pytest.mark.parametrize('family', MULTIMODAL)
def test_responses_of_a_prompt_share_one_pass_of_its_media(family: str, stirred: Stirred) -> None:
    folder = stirred(family)
    spec, _, groups = rows(folder)
    row = max(groups, key=lambda row: sum(row.example.prompt.media_counts.values()))
    # Two images or audio clips and one medium of each other kind.
    assert row.example.prompt.media_counts == {**dict.fromkeys(MEDIA[family], 1), MEDIA[family][0]: 2}
    assert not any(piece.media for piece in row.example.responses)
    number = len(row.example.responses)
    assert number > 1
    register_segment_attention()
    model = load_model(folder, spec.components).eval()
    seen = encoded_items(model, spec)
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)

    def encoded(layout: str, example: Example, dummies: tuple[str, ...] = ()) -> tuple[dict[str, int], dict[str, int]]:
        set_text_attention(model, 'sdpa' if layout == 'padded' else SEGMENT_ATTENTION)
        seen.clear()
        batch = TokenCollator(spec, layout, dummy_kinds=dummies)([example])
        with torch.no_grad():
            policy(batch)
        return dict(seen), {kind: batch.stats.get(f'{kind}s', 0) for kind in MEDIA[family]}

    once, media = encoded('padded', replace(row.example, responses=row.example.responses[:1]))
    assert set(once) == set(spec.components) & {'vision_tower', 'audio_tower'} and all(once.values())
    for layout in spec.layouts:
        times = 1 if layout == 'shared_prefix' else number
        # Nothing is missing, so no dummy comes along.
        found = encoded(layout, row.example, MEDIA[family])
        assert found == tuple({name: times * count for name, count in part.items()} for part in (once, media)), layout
    text = next(row.example for row in rows(folder)[1] if not row.has_media)
    for layout in spec.layouts:
        assert encoded(layout, text) == ({}, dict.fromkeys(MEDIA[family], 0))
        assert encoded(layout, text, MEDIA[family])[1] == dict.fromkeys(MEDIA[family], 1)


class Widest(TorchDispatchMode):
    """Remembers the shapes of all results, forward and backward, that have a dimension of `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))

        def note(tensor: Tensor) -> Tensor:
            if tensor.ndim >= 2 and self.width in tensor.shape:
                self.shapes.add(tuple(tensor.shape))
            return tensor

        map_tensors(result if not isinstance(result, Tensor) else [result], note)
        return result


def _wide(folder: Path, out: Path, vocabulary: int) -> Path:
    """The checkpoint with a larger vocabulary: most of its ids never occur."""
    torch.manual_seed(0)
    model = load_plain(folder, torch.float32)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save_pretrained(out)
    spec, *_ = rows(folder)
    spec.tokenizer.save_pretrained(out)
    return out


@pytest.mark.parametrize('stage', [0, 2, 3])
@pytest.mark.parametrize('family', ['llama', 'qwen2'])
def test_no_tensor_of_length_by_vocabulary(family: str, stage: int, stirred: Stirred, tmp_path: Path) -> None:
    vocabulary, budget = 9973, 1 << 18
    source = _wide(stirred(family), tmp_path / 'wide', vocabulary)
    spec, singles, _ = rows(source)
    assert len(ordinary(spec)) > 100
    examples = [row.example for row in singles]

    def work(rank: int) -> Any:
        logprob.CHUNK_ELEMENTS = budget
        run = assembled(settings(source, family, zero_file(tmp_path, stage)), family)
        batch = run.policy.collate(examples)
        with Widest(vocabulary) as seen:
            loss = run.train_step([batch], SFT()).loss
        return seen.shapes, loss, len(batch.inputs.targets), batch.stats['tokens']

    shapes, loss, units, tokens = fork(work, 1)[0]
    chunk = logprob.CHUNK_ELEMENTS and budget // vocabulary  # 2^18 / 9973 = 26 rows
    hidden = spec.config.hidden_size
    assert units > 3 * chunk and tokens > units
    allowed = {(vocabulary, hidden), (hidden, vocabulary)}
    rows_held = {shape[0] for shape in shapes - allowed if shape[-1] == vocabulary}
    # A tile is narrower than the vocabulary as soon as it holds more rows than the budget allows whole ones.
    assert max(rows_held, default=0) <= chunk
    assert {shape for shape in shapes - allowed if shape[-1] != vocabulary} == set()
    model = load_plain(source).train()
    scores, parts = zip(*(reference_units(model, row) for row in singles), strict=True)
    expected = -float((torch.cat(scores) * torch.cat(parts)).sum() / torch.cat(parts).sum())
    assert loss == pytest.approx(expected, rel=1e-5)
