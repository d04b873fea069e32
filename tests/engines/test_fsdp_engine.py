"""FSDP2 against the single-process oracle: the same weights for every cut and layout; state that goes on exactly."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.sft import SFT
from align_anything.core.errors import TrainingError
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.fsdp_config import build_fsdp_config
from align_anything.engines.fsdp_engine import FSDPEngine
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.engines.test_deepspeed_engine import GLOBAL_BATCH, STEPS, examples, optimizer, oracle, policy, schedule
from tests.engines.test_deepspeed_engine import config as deepspeed
from tests.harness.pairwise import first_of, in_tiers, pairwise
from tests.harness.ranks import run_ranks
from tests.policies.stub import TextFamily


def config(precision: str = 'fp32', reshard: bool = True) -> dict[str, Any]:
    return build_fsdp_config(precision=precision, max_grad_norm=1.0, reshard_after_forward=reshard, cpu_offload=False)


def opened(module: TokenPolicy, precision: str = 'fp32', reshard: bool = True) -> FSDPEngine:
    return FSDPEngine(module, config(precision, reshard), optimizer, schedule)


def weights(engine: FSDPEngine) -> dict[str, Tensor] | None:
    return engine.full_state_dict(engine.policy.model)


def train(rank: int, ranks: int, reshard: bool, checkpointing: bool, micro: int, layout: str, tied: bool = True):
    accumulation = GLOBAL_BATCH // ranks // micro
    module = policy(tied)
    if checkpointing:
        module.model.gradient_checkpointing_enable({'use_reentrant': False})
    engine = opened(module, reshard=reshard)
    collate, rows = TokenCollator(TextFamily(), layout), examples()
    losses, norms = [], []
    for step in range(STEPS):
        part = rows[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH][rank * GLOBAL_BATCH // ranks :]
        micro_batches = [collate(part[m * micro : (m + 1) * micro]) for m in range(accumulation)]
        losses.append(engine.train_step(micro_batches, SFT()).loss)
        norms.append(engine.grad_norm)
        engine.infer(micro_batches[0])
    return weights(engine), losses, norms


@pytest.fixture(scope='module')
def expected():
    return oracle()


DIMENSIONS = {
    'ranks': (1, 2),
    'reshard': (True, False),
    'checkpointing': (False, True),
    'micro': (1, 4),
    'layout': ('padded', 'packed', 'shared_prefix'),
}


FIRST = [(2, True, True, 4, 'packed'), (1, False, False, 1, 'shared_prefix')]
FOUR = [(4, True, True, 1, 'packed'), (4, False, False, 2, 'padded')]
CUTS = list(dict.fromkeys([*FIRST, *pairwise(**DIMENSIONS), *FOUR]))


@pytest.mark.parametrize([*DIMENSIONS], in_tiers(CUTS, FIRST))
def test_same_weights_for_every_cut_and_layout(expected, ranks, reshard, checkpointing, micro, layout):
    state, losses, norms = run_ranks(train, ranks, args=(ranks, reshard, checkpointing, micro, layout))[0]
    assert losses == pytest.approx(expected[1], rel=1e-5)
    assert norms == pytest.approx(expected[2], rel=1e-4)
    for name, tensor in expected[0].items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f'{n}: {text}')


@pytest.mark.extended
def test_untied_heads_train_too():
    state, losses, _ = run_ranks(train, 2, args=(2, True, False, 2, 'packed', False))[0]
    untied, untied_losses, _ = oracle(tied=False)
    assert losses == pytest.approx(untied_losses, rel=1e-5)
    torch.testing.assert_close(state['lm_head.weight'], untied['lm_head.weight'], rtol=1e-3, atol=1e-5)


def of_rank(rank: int, first: int = 0) -> list:
    return [TokenCollator(TextFamily(), 'packed')(examples()[first + rank * 2 : first + rank * 2 + 2])]


def nonfinite(rank: int, precision: str):
    module = policy(True)
    module.to(torch.bfloat16 if precision == 'bf16' else torch.float32)
    engine = opened(module, precision)
    engine.train_step(of_rank(rank), SFT())
    before = copy.deepcopy(weights(engine))
    poisoned = of_rank(0, 4)
    if rank == 1:
        poisoned[0].weights[0] = float('nan')
    bad = engine.train_step(poisoned, SFT())
    after = weights(engine)
    unchanged = rank == 1 or all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    good = engine.train_step(of_rank(0, 6), SFT())
    after = weights(engine)
    changed = rank == 1 or any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
    kinds = {own.dtype for own in engine.policy.parameters()}, rank == 1 or {own.dtype for own in after.values()}
    return bad.applied, bad.finite, unchanged, good.applied, good.finite, changed, kinds


@pytest.mark.parametrize('precision', first_of(['fp32', 'bf16'], 'bf16'))
def test_a_non_finite_loss_never_reaches_the_weights(precision):
    saved = torch.bfloat16 if precision == 'bf16' else torch.float32
    results = run_ranks(nonfinite, 2, args=(precision,))
    for applied, finite, unchanged, good_applied, good_finite, changed, (held, _) in results:
        assert not applied and not finite and unchanged
        assert good_applied and good_finite and changed
        assert held == {torch.float32}, 'masters'
    assert results[0][-1][1] == {saved}


def resume(rank: int, folder: Path, ranks_before: int | None):
    """Three steps in one go and, from the state after the first one, again: here, or by other ranks' state."""
    batches = [of_rank(rank, 4 * step) for step in range(3)]
    engine = opened(policy(True))
    if ranks_before is not None:
        engine.load_state(folder)
        return None, [engine.train_step(batch, SFT()).loss for batch in batches[1:]], weights(engine), None
    engine.train_step(batches[0], SFT())
    engine.save_state(folder)
    losses = [engine.train_step(batch, SFT()).loss for batch in batches[1:]]
    whole = weights(engine)
    again = opened(policy(True))
    again.load_state(folder)
    resumed = [again.train_step(batch, SFT()).loss for batch in batches[1:]]
    state = weights(again)
    same = rank == 1 or all(torch.equal(tensor, state[name]) for name, tensor in whole.items())
    return losses, resumed, whole, same and engine.learning_rates == again.learning_rates


def test_a_restored_engine_goes_on_to_the_same_bits(tmp_path):
    for losses, resumed, _, same in run_ranks(resume, 2, args=(tmp_path, None)):
        assert losses == resumed and same


def on_deepspeed(stage: int, precision: str, ranks: int) -> DeepSpeedEngine:
    module = policy(True).to(torch.bfloat16 if precision == 'bf16' else torch.float32)
    return DeepSpeedEngine(module, deepspeed(stage, 2, 1, ranks, precision), optimizer(module), schedule)


def goes_over(rank: int, ranks: int, stage: int, precision: str, folder: Path):
    """Three steps on each engine; and the last two on the other one, from the state after the first."""
    half = torch.bfloat16 if precision == 'bf16' else torch.float32
    batches = [of_rank(rank, 4 * step) for step in range(3)]
    engines = {
        'fsdp': lambda: opened(policy(True).to(half), precision),
        'deepspeed': lambda: on_deepspeed(stage, precision, ranks),
    }
    told = {}
    for name, fresh in engines.items():
        engine = fresh()
        engine.train_step(batches[0], SFT())
        (folder / name).mkdir(exist_ok=True)
        engine.save_state(folder / name)
        losses = [engine.train_step(batch, SFT()).loss for batch in batches[1:]]
        told[name] = losses, weights(engine), engine.learning_rates
    for name, other in (('fsdp', 'deepspeed'), ('deepspeed', 'fsdp')):
        engine = engines[other]()
        engine.load_state(folder / name, folder / 'scratch')
        losses = [engine.train_step(batch, SFT()).loss for batch in batches[1:]]
        told[f'{name} to {other}'] = losses, weights(engine), engine.learning_rates
    return told


@pytest.mark.parametrize(
    ('ranks', 'stage', 'precision'),
    in_tiers(
        [case for case in product((1, 2), (0, 1, 2, 3), ('fp32', 'bf16')) if case[1:] != (0, 'bf16')],
        [(1, 0, 'fp32'), (2, 3, 'fp32')],
    ),
)
def test_each_engine_goes_on_from_the_state_of_the_other(ranks, stage, precision, tmp_path):
    told, *_ = run_ranks(goes_over, ranks, args=(ranks, stage, precision, tmp_path))
    rounding = {'rtol': 2e-2, 'atol': 2e-3} if precision == 'bf16' else {'rtol': 1e-4, 'atol': 1e-6}
    expected, _, rates = told['fsdp']
    for name, (losses, state, own_rates) in told.items():
        assert losses == pytest.approx(expected, rel=2e-2 if precision == 'bf16' else 1e-5), name
        assert own_rates == pytest.approx(rates), name
        for key, tensor in state.items():
            torch.testing.assert_close(
                tensor, told['fsdp'][1][key], msg=lambda text, n=f'{name}, {key}': f'{n}: {text}', **rounding
            )


def refused(rank: int, folder: Path):
    engines = {'fsdp': opened(policy(True).to(torch.bfloat16), 'bf16'), 'deepspeed': on_deepspeed(0, 'bf16', 1)}
    for name, engine in engines.items():
        engine.train_step(of_rank(0), SFT())
        (folder / name).mkdir()
        engine.save_state(folder / name)
    for name, other in (('fsdp', 'deepspeed'), ('deepspeed', 'fsdp')):
        with pytest.raises(TrainingError, match='half precision without ZeRO'):
            engines[other].load_state(folder / name, folder / 'scratch')


@pytest.mark.extended
def test_half_precision_without_zero_goes_over_in_neither_direction(tmp_path):
    run_ranks(refused, 1, args=(tmp_path,))
