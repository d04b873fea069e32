"""Under ZeRO-3 a family also trains and scores whose forward pass reads weights without calling their modules.

Qwen2-Audio reads the positions of its audio encoder so, Gemma 4 its word embeddings, Gemma 3n what mixes its streams.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.sft import SFT
from align_anything.core.types import Example
from align_anything.policies.token.collator import TokenCollator
from align_anything.trainers.runs.assembly import open_frozen
from align_anything.trainers.runs.settings import engine_config, spec_of
from tests.harness.pairwise import first_of
from tests.invariants.runs import assembled, fork, settings, zero_file
from tests.models.mixed import MEDIA, first_turn


def examples(spec: Any, family: str) -> list[Example]:
    """One with a medium of each kind, and one without."""
    return [spec.encode(first_turn(kinds)) for kinds in (MEDIA[family], ())]


def scores(folder: Path, family: str, zero: Path) -> list[Tensor]:
    """Of the answers of the examples, by a model that never trains."""
    cfgs = settings(folder, family, zero)
    spec, config = spec_of(cfgs), engine_config(cfgs)[0]
    collate = TokenCollator(spec, 'padded', dummy_kinds=MEDIA[family])
    engine = open_frozen(cfgs, collate, str(folder), scores='tokens', dtype=torch.float32, config=config)
    return [engine.score(collate([example])).values for example in examples(spec, family)]


def losses(folder: Path, family: str, zero: Path) -> list[float]:
    """Of two optimizer steps over the examples."""
    run = assembled(settings(folder, family, zero, gradient_checkpointing=True), family)
    micro_batches = [run.policy.collate([example]) for example in examples(run.policy.collate.spec, family)]
    return [run.train_step(micro_batches, SFT()).loss for _ in range(2)]


@pytest.mark.parametrize('family', first_of(['qwen2_audio', 'gemma4', 'gemma3n'], 'qwen2_audio'))
def test_partitioned_it_scores_and_trains_as_it_does_whole(
    family: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder, whole, divided = tiny(family), zero_file(tmp_path, 0), zero_file(tmp_path, 3)

    def work(rank: int) -> tuple[list[Tensor], list[Tensor], list[float]]:
        return scores(folder, family, whole), scores(folder, family, divided), losses(folder, family, divided)

    [(expected, found, trained)] = fork(work, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert trained[0] == pytest.approx(-float(torch.cat(expected).mean()), rel=1e-5)
    assert trained[1] < trained[0]
