"""Adapters trained under ZeRO reload on the plain model, and merged into it, with the scores of the live policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from align_anything.models.checkpoint import stored_keys
from align_anything.models.export import export_model
from tests.harness.pairwise import in_tiers
from tests.invariants.families import load_plain, reference_units, rows
from tests.invariants.runs import assembled, fork, settings, train, zero_file

Stirred = Callable[[str], Path]


@pytest.mark.parametrize(
    ('family', 'stage'),
    in_tiers(
        [
            ('qwen2', 0),
            ('llava', 0),
            ('llava', 3),
            ('qwen2_5_vl', 3),
            ('qwen2_audio', 2),
            ('qwen2_5_omni_thinker', 3),
        ],
        [('qwen2', 0), ('llava', 3), ('qwen2_audio', 2)],
    ),
)
def test_trained_adapters_reload_apart_and_merged(family: str, stage: int, stirred: Stirred, tmp_path: Path) -> None:
    folder = stirred(family)
    spec, singles, _ = rows(folder)
    chosen = singles[0]
    changes = {'use_lora': True, 'r': 4, 'lora_dropout': 0, 'vision_lora': 'image' in spec.reads}

    def work(rank: int, ranks: int) -> Tensor:
        run = assembled(settings(folder, family, zero_file(tmp_path, stage), learning_rate=0.02, **changes), family)
        train(run, folder, rank, ranks)
        run.engine.eval()
        with torch.no_grad():
            scores = run.score(run.policy.collate([chosen.example])).values
        state = run.full_state_dict(run.policy.model) if stage == 3 else None
        if rank == 0:
            live = run.policy.model.state_dict()
            before = None if stage == 3 else {name: value.clone() for name, value in live.items()}
            for name, merge in (('adapter', False), ('merged', True)):
                export_model(
                    run.policy.model,
                    state,
                    tmp_path / name,
                    tokenizer=spec.tokenizer,
                    processor=spec.processor,
                    merge_adapter=merge,
                )
            if before is not None:
                after = run.policy.model.state_dict()
                assert all(torch.equal(before[name], after[name]) for name in before), 'the live model is untouched'
        return scores

    live = fork(work, 2, 2)[0]

    def scores_of(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return reference_units(model.eval(), chosen)[0].float()

    source = load_plain(folder, torch.float32)
    assert (scores_of(source) - live).abs().max() > 1e-2, 'training has changed the scores'
    adapted = PeftModel.from_pretrained(source, tmp_path / 'adapter')
    torch.testing.assert_close(scores_of(adapted), live, atol=5e-5, rtol=0)
    assert stored_keys(tmp_path / 'merged') == stored_keys(folder)
    torch.testing.assert_close(scores_of(load_plain(tmp_path / 'merged', torch.float32)), live, atol=5e-5, rtol=0)
    assert not (tmp_path / 'adapter' / 'model.safetensors').exists()
