"""What a fast attention cannot do is computed another way or refused, for every class of transformers.

Windows, soft caps and sinks: all of them are in the configurations, each window 8 tokens long, and the weights are
such that a score moves by nats when one is lost.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig

from align_anything.core.errors import ModelError
from align_anything.core.types import Batch, Example, Piece
from align_anything.models.architecture import plain_attention, transformers_class
from align_anything.models.pretrained_model import set_text_attention
from align_anything.models.rope import fix_rope_tables
from align_anything.policies.token.attention import (
    SEGMENT_ATTENTION,
    AttentionPlan,
    register_segment_attention,
)
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.plan import fit_attention
from align_anything.policies.token.policy import TokenPolicy
from align_anything.policies.token.selfcheck import long_probe
from align_anything.policies.token.spans import Span
from tests.harness.every_class import (
    NOT_SCANNED,
    bears,
    checked_scores,
    listed,
    load_as_run,
    model_types,
    random_model,
    small_config,
)

TOLERANCE = 1e-3
GENERATE = {'return_dict_in_generate': True, 'output_logits': True, 'do_sample': False, 'max_new_tokens': 12}
# How each asks for what it needs: a window by the mask alone (qwen2_moe, phimoe), by mask and argument (mistral,
# gemma3), soft caps beside it (gemma2), sinks (gpt_oss).
ROWS = ('qwen2_moe', 'phimoe', 'mistral', 'gemma3', 'gemma2', 'gpt_oss')


# Doge makes masks of the keys themselves, and Nemotron keeps the plan from its attention.
@pytest.mark.parametrize('model_type', [*ROWS, 'doge', 'nemotron'])
def test_what_a_run_computes_is_what_the_plain_class_computes(model_type: str) -> None:
    model, spec, plain = load_as_run(model_type)
    for asked in ('shared_prefix', 'packed'):
        layout, scores = checked_scores(model, spec, asked)
        assert layout == (asked if model_type in ROWS else 'padded')
        torch.testing.assert_close(scores, plain, atol=TOLERANCE, rtol=0)


@pytest.mark.extended
@pytest.mark.parametrize('model_type', [name for name in model_types() if name not in NOT_SCANNED])
def test_every_class_bears_what_the_docs_say(model_type: str) -> None:
    assert bears(model_type) == listed()[model_type]


def test_the_docs_list_every_class() -> None:
    assert sorted(listed()) == model_types()
    assert {name for name, found in listed().items() if found.startswith('not scanned')} == set(NOT_SCANNED)


def test_paligemma_2_is_computed_with_its_soft_caps() -> None:
    text = {'model_type': 'gemma2', 'attn_logit_softcapping': 50.0}
    config = AutoConfig.for_model('paligemma', text_config=text)
    assert plain_attention(transformers_class(config), config) == 'eager'


@pytest.mark.parametrize('model_type', ['gemma2', 'vaultgemma', 'gpt_oss'])
def test_sdpa_gives_way_where_it_would_drop_what_the_model_needs(model_type: str) -> None:
    config = small_config(model_type)
    assert plain_attention(transformers_class(config), config) == 'eager'
    # Nothing of it is left out when the attention of the rows generates, with a cache.
    model, _, _ = load_as_run(model_type)
    prompt = {'input_ids': torch.arange(5, 25)[None], 'attention_mask': torch.ones((1, 20), dtype=torch.long)}
    expected = model.generate(**prompt, **GENERATE)
    register_segment_attention()
    set_text_attention(model, SEGMENT_ATTENTION)
    found = model.generate(**prompt, **GENERATE)
    assert found.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=TOLERANCE, rtol=0)


def test_an_attention_that_drops_soft_caps_is_refused() -> None:
    model, spec, _ = load_as_run('gemma2', query_pre_attn_scalar=1, attn_logit_softcapping=1.0)
    set_text_attention(model, 'sdpa')
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)
    with pytest.raises(ModelError, match="'sdpa' gives other scores than transformers' eager one on Gemma2ForCausalLM"):
        policy.check(policy, torch.device('cpu'))


def windowless(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **asked: Any) -> Any:
    """Stands for a kernel of flash-attention: causal, and of a window it knows what the class hands on."""
    length, window = query.shape[2], asked.get('sliding_window') or query.shape[2]
    visible = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = F.scaled_dot_product_attention(query, key, value, visible, scale=asked.get('scaling'))
    return output.transpose(1, 2).contiguous(), None


@pytest.mark.parametrize(('model_type', 'max_length', 'is_right'), [
    ('mistral', 64, True),
    ('qwen2_moe', 64, False),
    # No sequence of the run is longer than the window.
    ('qwen2_moe', 32, True),
])  # fmt: skip
def test_a_kernel_that_loses_the_window_is_refused(model_type: str, max_length: int, is_right: bool) -> None:
    AttentionInterface.register('windowless', windowless)
    AttentionMaskInterface.register('windowless', lambda **_: None)
    model, spec, _ = load_as_run(model_type, sliding_window=32)
    set_text_attention(model, 'windowless')
    spec.max_length = max_length
    policy = TokenPolicy(model, TokenCollator(spec, 'padded', segmented=False), dtype=torch.float32)
    lost = 'beyond a window of 32 tokens.*Set model_cfgs.attn_implementation: sdpa'
    with nullcontext() if is_right else pytest.raises(ModelError, match=lost):
        # What pads stands behind all that is scored, so that a causal kernel needs no mask for it.
        policy.check(policy, torch.device('cpu'))


def test_the_probe_is_longer_than_every_window_that_can_bind() -> None:
    lengths: list[int] = []

    def score(batch: Batch) -> Tensor:
        lengths.append(batch.inputs.arguments['input_ids'].shape[1])
        return torch.zeros(len(batch.inputs.targets))

    for window, max_length, longest in ((8, 64, 24), (4096, 8192, 4608), (4096, 4200, 4200), (4096, 4096, None)):
        model, spec, _ = load_as_run('mistral', sliding_window=window)
        spec.max_length = max_length
        lengths.clear()
        found = long_probe(score, TokenCollator(spec, 'padded'), range(5, 60), model)
        assert (max(lengths) if lengths else None, found and found.window) == (longest, window if longest else None)


@pytest.mark.parametrize('model_type', ['llama', pytest.param('qwen3_moe', marks=pytest.mark.extended)])
def test_the_allowance_in_half_precision_is_that_of_the_model(model_type: str) -> None:
    """Rounding moves the scores of a deep model by more than a constant allows; a fault moves them further."""
    model, spec, _ = load_as_run(model_type, num_hidden_layers=24)
    model.to(torch.bfloat16)
    policy = TokenPolicy(model, TokenCollator(spec, 'shared_prefix'), dtype=torch.bfloat16)
    fit_attention(model, policy.collate)
    policy.check(policy, torch.device('cpu'))
    assert policy.collate.layout == 'shared_prefix'

    class Leaking(TokenCollator):
        def __call__(self, examples: Any, skipped: Any = ()) -> Batch:
            batch = super().__call__(examples, skipped)
            arguments = batch.inputs.arguments
            if 'segments' in arguments:
                arguments['segments'] = AttentionPlan((Span(0, arguments['input_ids'].numel()),))
            return batch

    policy.collate = Leaking(spec, 'packed')
    policy.check(policy, torch.device('cpu'))
    assert policy.collate.layout == 'padded'


LONGROPE = {'rope_type': 'longrope', 'rope_theta': 1e4, 'original_max_position_embeddings': 16, 'factor': 4.0,
            'long_factor': [4.0, 3.0, 2.0, 5.0], 'short_factor': [1.0, 1.1, 1.2, 1.3]}  # fmt: skip
PHI3 = {'sliding_window': None, 'original_max_position_embeddings': 16}
DYNAMIC = {'rope_type': 'dynamic', 'rope_theta': 1e4, 'factor': 4.0}


@pytest.mark.parametrize(('model_type', 'scaling'), [
    ('phi3', LONGROPE),
    ('phimoe', {**LONGROPE, 'long_mscale': 1.3, 'short_mscale': 1.1}),
    ('llama', DYNAMIC),
])  # fmt: skip
@pytest.mark.parametrize('max_length', [16, 64])
def test_no_neighbour_changes_the_rotary_table(model_type: str, scaling: dict[str, Any], max_length: int) -> None:
    """Every sequence has the table that transformers has for one of `max_length` tokens."""
    changes: dict[str, Any] = dict({'phimoe': {'sliding_window': None}, 'phi3': PHI3}.get(model_type, {}))
    # Of 16 positions each table is the first one; dynamic scaling begins behind the positions of the model.
    changes |= {'rope_parameters': scaling, 'max_position_embeddings': 16 if scaling is DYNAMIC else 64}
    model, spec, _ = load_as_run(model_type, **changes)
    plain = random_model(small_config(model_type, **changes))
    spec.max_length = max_length
    ids = torch.randint(5, 60, (64,), generator=torch.Generator().manual_seed(0))
    short = Example(Piece(ids[:5], torch.zeros(5)), [Piece(ids[5:12], torch.ones(7))])
    long = Example(Piece(ids[:5], torch.zeros(5)), [Piece(ids[5:max_length], torch.ones(max_length - 5))])

    def scores(model: Any, examples: list[Example]) -> Tensor:
        policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)
        with torch.no_grad():
            return policy(policy.collate(examples)).values

    expected = scores(plain, [long])
    fit_attention(model, TokenCollator(spec, 'padded'))
    torch.testing.assert_close(scores(model, [long]), expected, atol=TOLERANCE, rtol=0)
    for _ in range(2):
        # The short one is the beginning of the long one, under the same table whatever came before and beside it.
        torch.testing.assert_close(scores(model, [short]), expected[:7], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(scores(model, [short, long])[:7], expected[:7], atol=TOLERANCE, rtol=0)
    alone = float((scores(plain, [short]) - expected[:7]).abs().max())
    assert (alone > 10 * TOLERANCE) == (max_length == 64)


def test_a_table_that_is_not_the_plain_one_of_short_sequences_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for max_length, said in ((16, 0), (64, 1)):
        model, _, _ = load_as_run('phi3', rope_parameters=LONGROPE, max_position_embeddings=64, **PHI3)
        fix_rope_tables(model, max_length)
        assert caplog.text.count('set model_max_length to at most 16 for the other table') == said
