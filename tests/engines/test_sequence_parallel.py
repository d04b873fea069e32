"""Ranks that share rows train as one rank does: the oracle of the engine's own tests, in groups of two and four."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.models.any_model import add_score_head
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.policies.token.sequence_parallel import Share
from tests.engines import test_deepspeed_engine as plain
from tests.harness.local_engine import LocalEngine
from tests.harness.pairwise import in_tiers, pairwise
from tests.harness.ranks import run_ranks
from tests.policies.stub import TextFamily, example, piece, tiny_llama

GLOBAL_BATCH = plain.GLOBAL_BATCH


def shared_policy(layout: str, size: int, tied: bool = True) -> TokenPolicy:
    register_segment_attention()
    model = tiny_llama(tie_word_embeddings=tied, num_attention_heads=4)
    model.set_attn_implementation(SEGMENT_ATTENTION)
    return TokenPolicy(model, TokenCollator(TextFamily(), layout, ranks_per_row=size), dtype=torch.float32)


def train(rank: int, ranks: int, size: int, stage: int, layout: str, checkpointing: bool):
    """Groups of `size` ranks have rows of their own, and split each of their micro-batches of two."""
    module = shared_policy(layout, size)
    if checkpointing:
        module.model.gradient_checkpointing_enable({'use_reentrant': False})
    groups, micro = ranks // size, 2
    accumulation = GLOBAL_BATCH // groups // micro
    engine = DeepSpeedEngine(
        module,
        plain.config(stage, micro, accumulation, ranks),
        plain.optimizer(module),
        plain.schedule,
        copies=size,
    )
    rows, losses, norms = plain.examples(), [], []
    for step in range(plain.STEPS):
        own = rows[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH][rank // size * GLOBAL_BATCH // groups :]
        micro_batches = [module.collate(own[m * micro : (m + 1) * micro]) for m in range(accumulation)]
        result = engine.train_step(micro_batches, SFT(), extras={'rows': float(accumulation * micro)})
        assert result.extras['rows'] == GLOBAL_BATCH
        losses.append(result.loss)
        norms.append(engine.grad_norm)
    return plain.weights(engine), losses, norms


@pytest.fixture(scope='module')
def expected():
    """The weights, losses and norms of one rank that takes one row after another."""
    module = shared_policy('padded', 1).train()
    base = plain.optimizer(module)
    engine = LocalEngine(module, base, plain.schedule(base), max_grad_norm=1.0)
    rows, losses, norms = plain.examples(), [], []
    for step in range(plain.STEPS):
        batches = [module.collate([row]) for row in rows[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]]
        losses.append(engine.train_step(batches, SFT()).loss)
        norms.append(engine.grad_norm)
    return dict(module.model.state_dict()), losses, norms


DIMENSIONS = {
    'stage': (0, 1, 2, 3),
    'cut': ((2, 2), (4, 2), (4, 4)),
    'layout': ('packed', 'shared_prefix'),
    'checkpointing': (False, True),
}


@pytest.mark.parametrize([*DIMENSIONS], in_tiers(product(*DIMENSIONS.values()), pairwise(**DIMENSIONS)[:3]))
def test_same_weights_as_one_rank(expected, stage, cut, layout, checkpointing):
    state, losses, norms = run_ranks(train, cut[0], args=(*cut, stage, layout, checkpointing))[0]
    assert losses == pytest.approx(expected[1], rel=1e-5)
    assert norms == pytest.approx(expected[2], rel=1e-4)
    for name, tensor in expected[0].items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f'{n}: {text}')


PAIR = example(piece(5, 6, 7, weight=0), piece(8, 9, 10, 11, 12), piece(13, 14), source='pair')


def scored(rank: int, size: int, layout: str, kind: str):
    """Scores and gradients of one batch, in groups of `size` ranks or on one."""
    if kind == 'tokens':
        module = shared_policy(layout, size, tied=False)
    else:
        register_segment_attention()
        torch.manual_seed(0)
        model = add_score_head(tiny_llama(num_attention_heads=4))
        model.set_attn_implementation(SEGMENT_ATTENTION)
        collate = TokenCollator(TextFamily(), layout, ranks_per_row=size)
        module = ScorePolicy(model, collate, dtype=torch.float32, units=kind == 'units')
    found = module(module.collate([PAIR, plain.examples()[0]]), entropy=kind == 'tokens')
    more = [] if found.entropy is None else [found.entropy]
    (found.values.square().sum() + sum(value.square().sum() for value in more)).backward()
    gradients = {name: own.grad for name, own in module.model.named_parameters() if own.grad is not None}
    return [value.detach() for value in (found.values, *more)], gradients


@pytest.mark.parametrize('kind', ['tokens', 'responses', 'units'])
@pytest.mark.parametrize('layout', ['packed', 'shared_prefix'])
def test_scores_are_whole_and_gradients_add_up(kind, layout):
    expected, gradients = scored(0, 1, layout, kind)
    ranks = run_ranks(scored, 2, args=(2, layout, kind))
    for found, _ in ranks:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name, wanted in gradients.items():
        summed = sum(own[name] for _, own in ranks)
        torch.testing.assert_close(summed, wanted, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f'{n}: {text}')


def computed(rank: int) -> tuple[int, int]:
    """How many tokens the last layer sees on this rank, and how many heads its attention has."""
    module = shared_policy('packed', 2)
    seen = []
    module.model.model.layers[-1].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    batch = module.collate([plain.examples()[0], PAIR])
    module(batch)
    return seen[0], batch.inputs.arguments['input_ids'].numel()


def test_each_rank_computes_its_share():
    for own, row in run_ranks(computed, 2):
        assert own * 2 == row


def exchanged(rank: int):
    share = Share.of(2)
    tensor = torch.arange(1 * 4 * 3 * 2, dtype=torch.float32).view(1, 4, 3, 2) + 100 * rank
    few = torch.full((1, 1, 3, 2), float(rank))
    heads = share.to_heads(tensor)
    return torch.equal(share.to_tokens(heads.transpose(1, 2)), tensor.transpose(1, 2)), heads, share.to_heads(few)


def test_an_exchange_and_its_way_back():
    for rank, (same, heads, few) in enumerate(run_ranks(exchanged, 2)):
        assert same
        assert heads.shape == (1, 2, 6, 2)
        first = 12.0 * rank
        assert heads[0, 0, :, 0].tolist() == [first, first + 2, first + 4, first + 100, first + 102, first + 104]
        assert few[0, 0, :, 0].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
