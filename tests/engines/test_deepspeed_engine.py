"""DeepSpeed against the single-process oracle: the same weights for every cut, layout and ZeRO stage."""

from __future__ import annotations

import copy
import os
from itertools import product
from pathlib import Path

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.core.errors import TrainingError
from align_anything.engines.deepspeed_config import build_config
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.optim import make_optimizer, make_schedule, parameter_groups
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.harness.local_engine import LocalEngine
from tests.harness.pairwise import in_tiers, pairwise
from tests.harness.ranks import run_ranks
from tests.policies.stub import TextFamily, example, piece, plain_policy, tiny_llama

STEPS, GLOBAL_BATCH = 3, 8


def examples(seed: int = 0) -> list:
    """Lengths from 2 to 20, so that a mean of means would be far from the token mean."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low, high, weight):
        length = int(torch.randint(low, high, (), generator=generator))
        return piece(*torch.randint(1, 50, (length,), generator=generator).tolist(), weight=weight)

    return [
        example(tokens(1, 8, 0.0), tokens(1, 20, 1.0), source=f'row {number}') for number in range(STEPS * GLOBAL_BATCH)
    ]


def policy(tied: bool) -> TokenPolicy:
    register_segment_attention()
    model = tiny_llama(tie_word_embeddings=tied)
    model.set_attn_implementation(SEGMENT_ATTENTION)
    return plain_policy(model)


def optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
    groups = parameter_groups(module.named_parameters(), learning_rate=1e-2, weight_decay=0.1, rates={})
    return make_optimizer('adamw_torch', groups, betas=(0.9, 0.95), eps=1e-8)


def schedule(base: torch.optim.Optimizer):
    return make_schedule(base, 'cosine', warmup_ratio=0.3, total_steps=STEPS)


def config(stage: int, micro: int, accumulation: int, ranks: int, precision: str = 'fp32') -> dict:
    return build_config(
        {'zero_optimization': {'stage': stage}},
        micro_batch=micro, accumulation=accumulation, world_size=ranks, precision=precision,
        max_grad_norm=1.0, optimizer='adamw_torch',
    )  # fmt: skip


def weights(engine: DeepSpeedEngine) -> dict[str, torch.Tensor]:
    return engine.full_state_dict(engine.policy.model)


def oracle(tied: bool = True) -> tuple[dict[str, torch.Tensor], list[float], list[float]]:
    module = policy(tied).train()
    base = optimizer(module)
    engine = LocalEngine(module, base, schedule(base), max_grad_norm=1.0)
    collate, rows = TokenCollator(TextFamily(), 'padded'), examples()
    losses, norms = [], []
    for step in range(STEPS):
        micro_batches = [collate([row]) for row in rows[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]]
        losses.append(engine.train_step(micro_batches, SFT()).loss)
        norms.append(engine.grad_norm)
    return dict(module.model.state_dict()), losses, norms


def train(rank: int, ranks: int, stage: int, micro: int, layout: str, tied: bool = True):
    accumulation = GLOBAL_BATCH // ranks // micro
    module = policy(tied)
    engine = DeepSpeedEngine(module, config(stage, micro, accumulation, ranks), optimizer(module), schedule)
    collate, rows = TokenCollator(TextFamily(), layout), examples()
    losses, norms = [], []
    for step in range(STEPS):
        part = rows[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH][rank * GLOBAL_BATCH // ranks :]
        micro_batches = [collate(part[m * micro : (m + 1) * micro]) for m in range(accumulation)]
        losses.append(engine.train_step(micro_batches, SFT()).loss)
        norms.append(engine.grad_norm)
    state = weights(engine)
    return state if rank == 0 else None, losses, norms


@pytest.fixture(scope='module')
def expected():
    return oracle()


DIMENSIONS = {'stage': (0, 1, 2, 3), 'ranks': (1, 2), 'micro': (1, 4), 'layout': ('padded', 'packed', 'shared_prefix')}


@pytest.mark.parametrize([*DIMENSIONS], in_tiers(product(*DIMENSIONS.values()), pairwise(**DIMENSIONS)))
def test_same_weights_for_every_cut_stage_and_layout(expected, stage, ranks, micro, layout):
    state, losses, norms = run_ranks(train, ranks, args=(ranks, stage, micro, layout))[0]
    assert losses == pytest.approx(expected[1], rel=1e-5)
    assert norms == pytest.approx(expected[2], rel=1e-4)
    for name, tensor in expected[0].items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f'{n}: {text}')


@pytest.mark.parametrize('stage', [0, 3])
def test_untied_heads_train_too(stage):
    state, losses, _ = run_ranks(train, 2, args=(2, stage, 2, 'packed', False))[0]
    untied, untied_losses, _ = oracle(tied=False)
    assert losses == pytest.approx(untied_losses, rel=1e-5)
    torch.testing.assert_close(state['lm_head.weight'], untied['lm_head.weight'], rtol=1e-3, atol=1e-5)


def test_gradient_of_the_first_step_equals_a_float64_loop():
    """Gradients, not only weights after Adam, against a loop that knows nothing of batches."""
    rows = examples()[:GLOBAL_BATCH]
    model = tiny_llama().double()
    total, count = 0.0, 0
    for row in rows:
        ids = torch.cat([row.prompt.ids, row.responses[0].ids])
        logp = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        start = len(row.prompt)
        total = total - logp[torch.arange(start - 1, len(ids) - 1), ids[start:]].sum()
        count += len(ids) - start
    (total / count).backward()

    module = policy(tied=False)
    engine = LocalEngine(module, torch.optim.SGD(module.parameters(), lr=0.0))
    for layout in ('padded', 'packed', 'shared_prefix'):
        collate = TokenCollator(TextFamily(), layout)
        engine.train_step([collate(rows[:3]), collate(rows[3:4]), collate(rows[4:])], SFT())
        for (name, wanted), found in zip(model.named_parameters(), module.model.parameters(), strict=True):
            torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-4, atol=1e-6, msg=f'{layout} {name}')


def nonfinite(rank: int, stage: int, precision: str):
    module = policy(True)
    module.to(torch.bfloat16 if precision == 'bf16' else torch.float32)
    engine = DeepSpeedEngine(module, config(stage, 2, 1, 2, precision), optimizer(module), schedule)
    collate, rows = TokenCollator(TextFamily(), 'packed'), examples()
    engine.train_step([collate(rows[rank * 2 : rank * 2 + 2])], SFT())
    before = copy.deepcopy(weights(engine))
    poisoned = collate(rows[4:6])
    if rank == 1:
        poisoned.weights[0] = float('nan')
    bad = engine.train_step([poisoned], SFT())
    unchanged = rank == 1 or all(torch.equal(tensor, before[name]) for name, tensor in weights(engine).items())
    if rank == 1:
        weights(engine)
    good = engine.train_step([collate(rows[6:8])], SFT())
    changed = rank == 1 or any(not torch.equal(tensor, before[name]) for name, tensor in weights(engine).items())
    if rank == 1:
        weights(engine)
    return bad.applied, bad.finite, unchanged, good.applied, good.finite, changed


@pytest.mark.parametrize(
    ('stage', 'precision'),
    in_tiers(product((0, 1, 2, 3), ('fp32', 'bf16')), [(0, 'fp32'), (1, 'bf16'), (2, 'bf16'), (3, 'fp32')]),
)
def test_a_non_finite_loss_never_reaches_the_weights(stage, precision):
    for applied, finite, unchanged, good_applied, good_finite, changed in run_ranks(
        nonfinite, 2, args=(stage, precision)
    ):
        assert not applied and not finite and unchanged
        assert good_applied and good_finite and changed


def resume(rank: int, stage: int, folder: str):
    def fresh():
        module = policy(True)
        return DeepSpeedEngine(module, config(stage, 2, 2, 2), optimizer(module), schedule)

    collate, rows = TokenCollator(TextFamily(), 'packed'), examples()
    batches_by_step = [
        [
            collate(rows[s * 8 + rank * 4 : s * 8 + rank * 4 + 2]),
            collate(rows[s * 8 + rank * 4 + 2 : s * 8 + rank * 4 + 4]),
        ]
        for s in range(3)
    ]
    engine = fresh()
    engine.train_step(batches_by_step[0], SFT())
    engine.save_state(Path(folder))
    losses = [engine.train_step(micro_batches, SFT()).loss for micro_batches in batches_by_step[1:]]
    whole = weights(engine)
    again = fresh()
    again.load_state(Path(folder))
    resumed = [again.train_step(micro_batches, SFT()).loss for micro_batches in batches_by_step[1:]]
    state = weights(again)
    same = rank == 1 or all(torch.equal(tensor, state[name]) for name, tensor in whole.items())
    return losses, resumed, same, engine.learning_rates, again.learning_rates


@pytest.mark.parametrize('stage', [0, 1, 2, 3])
def test_a_restored_engine_goes_on_to_the_same_bits(stage, tmp_path):
    for losses, resumed, same, rates, again in run_ranks(resume, 2, args=(stage, str(tmp_path))):
        assert losses == resumed and same and rates == again


def nothing(rank: int):
    module = policy(True)
    engine = DeepSpeedEngine(module, config(2, 2, 1, 2), optimizer(module), schedule)
    collate, rows = TokenCollator(TextFamily(), 'packed'), examples()
    before = copy.deepcopy(weights(engine))
    empty = engine.train_step([collate([])], SFT(), extras={'skipped': rank + 1})
    half = engine.train_step([collate(rows[:2] if rank == 0 else [])], SFT())
    assert (empty.loss, empty.terms, empty.numbers, empty.empty, empty.finite) == (None, {}, {}, True, True)
    return empty.applied, empty.extras, half.applied, half.loss, before is None


def test_a_rank_without_samples_keeps_step_and_a_step_without_samples_changes_nothing():
    results = run_ranks(nothing, 2)
    for applied, extras, half_applied, loss, _ in results:
        assert not applied and extras == {'skipped': 3.0} and half_applied and loss > 0
    assert results[0][3] == results[1][3]


def unreached(rank: int):
    module = policy(True)
    module.requires_grad_(False)
    module.model.register_parameter('aside', torch.nn.Parameter(torch.zeros(2)))
    engine = DeepSpeedEngine(module, config(0, 2, 1, 1), optimizer(module), schedule)
    with pytest.raises(TrainingError, match='depend on no weight that trains'):
        engine.train_step([TokenCollator(TextFamily(), 'packed')(examples()[:2])], SFT())


def test_scores_that_nothing_trained_takes_part_in_are_an_error():
    run_ranks(unreached, 1)


def shared_memory_left(rank: int):
    module = policy(True)
    DeepSpeedEngine(module, config(0, 2, 1, 2), optimizer(module), schedule)
    port = os.environ['MASTER_PORT']
    return [name for name in os.listdir('/dev/shm') if f'_{port}_' in name]


def test_a_run_leaves_nothing_in_shared_memory():
    assert run_ranks(shared_memory_left, 2) == [[], []]
