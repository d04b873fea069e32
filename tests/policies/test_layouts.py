"""Where every token stands, by hand, and that the layouts mean the same to a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from align_anything.core.types import Example, Piece, Skipped
from align_anything.policies.token.attention import (
    SEGMENT_ATTENTION,
    AttentionPlan,
    media_blocks,
    register_segment_attention,
    segment_attention,
)
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.selfcheck import LayoutMismatch, check_head, check_layout, measured_allowance
from align_anything.policies.token.spans import Span

from .stub import TextFamily, example, piece, plain_policy, tiny_llama

PAIR = example(piece(11, 12, 13), piece(21, 22, weight=1.0), piece(31, weight=1.0))
SINGLE = example(piece(14, 15), piece(0, 23, 0, weight=2.0))  # token 0 is also the pad token


def test_padded_places():
    batch = TokenCollator(TextFamily(), 'padded')([PAIR, SINGLE])
    arguments = batch.inputs.arguments
    assert arguments['input_ids'].tolist() == [[11, 12, 13, 21, 22], [11, 12, 13, 31, 0], [14, 15, 0, 23, 0]]
    assert arguments['attention_mask'].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.inputs.targets.tolist() == [21, 22, 31, 0, 23, 0]
    # predictor of 21 is column 2 of row 0; of 31 column 2 of row 1 (5 + 2); of the first 0 column 1 of row 2 (10 + 1)
    assert batch.inputs.score_index.tolist() == [2, 3, 7, 11, 12, 13]
    assert batch.segments.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.weights.tolist() == [1, 1, 1, 2, 2, 2]
    assert batch.examples_of_responses.tolist() == [0, 0, 1]
    assert (batch.stats['tokens'], batch.stats['padding'], batch.stats['examples']) == (15, 1, 2)


def test_packed_places():
    batch = TokenCollator(TextFamily(), 'packed')([PAIR, SINGLE])
    assert batch.inputs.arguments['input_ids'].tolist() == [[11, 12, 13, 21, 22, 11, 12, 13, 31, 14, 15, 0, 23, 0]]
    assert batch.inputs.arguments['position_ids'].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert batch.inputs.score_index.tolist() == [2, 3, 7, 10, 11, 12]
    assert batch.inputs.arguments['segments'].spans == (Span(0, 5), Span(5, 9), Span(9, 14))
    assert batch.stats['padding'] == 0


def test_shared_prefix_places():
    batch = TokenCollator(TextFamily(), 'shared_prefix')([PAIR, SINGLE])
    assert batch.inputs.arguments['input_ids'].tolist() == [[11, 12, 13, 21, 22, 31, 14, 15, 0, 23, 0]]
    assert batch.inputs.arguments['position_ids'].tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 4]]
    # both first response tokens are predicted by the prompt's last token, at 2
    assert batch.inputs.score_index.tolist() == [2, 3, 2, 7, 8, 9]
    assert batch.inputs.arguments['segments'].spans == (
        Span(0, 3),
        Span(3, 5, 0, 3),
        Span(5, 6, 0, 3),
        Span(6, 8),
        Span(8, 11, 6, 8),
    )


def test_flash_arguments():
    inputs = TokenCollator(TextFamily(), 'packed', segmented=False)([PAIR, SINGLE]).inputs.arguments
    assert inputs['cu_seq_lens_q'].tolist() == [0, 5, 9, 14] and inputs['cu_seq_lens_q'].dtype == torch.int32
    assert inputs['max_length_k'] == 5 and inputs['attention_mask'] is None and 'segments' not in inputs


def test_prompt_weights_count_once_and_the_first_token_has_no_score():
    trained = example(piece(11, 12, 13, weight=1.0), piece(21, weight=1.0), piece(31, weight=1.0))
    for layout in ('padded', 'packed', 'shared_prefix'):
        batch = TokenCollator(TextFamily(), layout)([trained])
        assert batch.inputs.targets.tolist() == [12, 13, 21, 31], layout


def branching() -> Example:
    """A response of three sequences: behind two tokens of the prompt, behind none of it, and behind all of it."""
    behind_two = replace(piece(21, 22, weight=1.0), prefix_length=2)
    alone = replace(piece(41, 42, weight=1.0), prefix_length=0)
    return example(piece(11, 12, 13, 14), replace(piece(31, weight=1.0), earlier=[behind_two, alone]))


def test_sequences_of_a_response_begin_where_they_say():
    one, other = branching(), example(piece(15), piece(51, weight=1.0))
    padded = TokenCollator(TextFamily(), 'padded')([one, other])
    rows = [[11, 12, 21, 22, 0], [41, 42, 0, 0, 0], [11, 12, 13, 14, 31], [15, 51, 0, 0, 0]]
    assert padded.inputs.arguments['input_ids'].tolist() == rows
    shared = TokenCollator(TextFamily(), 'shared_prefix')([one, other])
    assert shared.inputs.arguments['input_ids'].tolist() == [[11, 12, 13, 14, 21, 22, 41, 42, 31, 15, 51]]
    assert shared.inputs.arguments['position_ids'].tolist() == [[0, 1, 2, 3, 2, 3, 0, 1, 4, 0, 1]]
    spans = (Span(0, 4), Span(4, 6, 0, 2), Span(6, 8), Span(8, 9, 0, 4), Span(9, 10), Span(10, 11, 9, 10))
    assert shared.inputs.arguments['segments'].spans == spans
    # 21 is predicted by the second token of the prompt, 22 by 21, 42 by 41 (the first of a sequence has no score),
    # 31 by the last token of the prompt.
    assert shared.inputs.score_index.tolist() == [1, 4, 6, 3, 9]
    for batch in (padded, shared, TokenCollator(TextFamily(), 'packed')([one, other])):
        assert batch.inputs.targets.tolist() == [21, 22, 42, 31, 51]
        assert batch.segments.tolist() == [0, 0, 0, 0, 1]
        assert batch.num_responses == 2 and batch.examples_of_responses.tolist() == [0, 1]
        assert batch.inputs.ends.shape == (2,)
    for layout, size in (('padded', 15), ('packed', 11), ('shared_prefix', 9)):
        collate = TokenCollator(TextFamily(), layout)
        assert collate.cost(one).size == size == collate.size([one]), layout
    assert one.responses[0].units == 5 and len(one) == 9


def test_prompt_tokens_of_branching_sequences_count_once():
    trained = branching()
    trained.prompt.weights[:] = 1.0
    for layout in ('padded', 'packed', 'shared_prefix'):
        batch = TokenCollator(TextFamily(), layout)([trained])
        assert sorted(batch.inputs.targets.tolist()) == [12, 13, 14, 21, 22, 31, 42], layout


def test_prompt_media_are_carried_once_when_the_prompt_is_shared():
    prompt = Piece(torch.tensor([7, 7, 5]), torch.zeros(3), {'pixels': torch.ones(1, 3)}, {'image': 1})
    pair = example(prompt, piece(21, weight=1.0), piece(31, weight=1.0))
    for layout, carried in (('padded', 2), ('packed', 2), ('shared_prefix', 1)):
        batch = TokenCollator(TextFamily(), layout)([pair])
        assert len(batch.inputs.arguments['pixels']) == batch.stats['images'] == carried, layout


@pytest.mark.parametrize('layout', ['padded', 'packed', 'shared_prefix'])
def test_dummy_media_stand_at_the_end_of_the_shortest_sequence(layout):
    batch = TokenCollator(TextFamily(), layout, dummy_kinds=('image',))([PAIR, SINGLE])
    plain = TokenCollator(TextFamily(), layout)([PAIR, SINGLE])
    assert batch.inputs.arguments['pixels'].shape == (1, 3)
    assert batch.inputs.targets.tolist() == plain.inputs.targets.tolist()
    assert batch.weights.tolist() == plain.weights.tolist()


@pytest.mark.parametrize('layout', ['padded', 'packed', 'shared_prefix'])
def test_a_batch_of_nothing_has_no_units_and_lists_what_fell_out(layout):
    batch = TokenCollator(TextFamily(), layout)([], [Skipped('row', 'broken')])
    assert batch.inputs.targets.shape == (0,) and batch.stats['examples'] == 0 and batch.skipped[0].reason == 'broken'
    assert batch.inputs.arguments['input_ids'].numel() > 0


def test_masks_of_a_branch_with_a_window():
    # prompt of 2, branch of 3, window of 3: query i (absolute 2 + i) sees keys in (i - 1 .. i + 2]
    mask = AttentionPlan((Span(0, 2), Span(2, 5, 0, 2))).mask(Span(2, 5, 0, 2), 3, torch.device('cpu'))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_media_see_each_other_in_both_directions():
    blocks = media_blocks(torch.tensor([0, 1, 1, 0, 1, 1], dtype=torch.bool), [0, 5])
    assert blocks.tolist() == [0, 1, 1, 0, 2, 3]
    mask = AttentionPlan((Span(0, 4),), blocks).mask(Span(0, 4), None, torch.device('cpu'))
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.fixture(scope='module')
def policy():
    register_segment_attention()
    model = tiny_llama()
    model.set_attn_implementation(SEGMENT_ATTENTION)
    return plain_policy(model)


@pytest.fixture(scope='module')
def score(policy):
    return lambda batch: policy(batch).values


@pytest.mark.parametrize('layout', ['padded', 'packed', 'shared_prefix'])
def test_scores_and_gradients_equal_one_sequence_at_a_time(policy, score, layout):
    def run(batches):
        policy.zero_grad()
        values = [score(batch) for batch in batches]
        sum(value.square().sum() for value in values).backward()
        return torch.cat(values).detach(), [parameter.grad.clone() for parameter in policy.parameters()]

    padded = TokenCollator(TextFamily(), 'padded')
    alone = [padded([replace(item, responses=[response])]) for item in (PAIR, SINGLE) for response in item.responses]
    expected, expected_gradients = run(alone)
    values, gradients = run([TokenCollator(TextFamily(), layout)([PAIR, SINGLE])])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('layout', ['padded', 'packed', 'shared_prefix'])
def test_self_check_passes_on_a_causal_model(score, layout):
    check_layout(score, TokenCollator(TextFamily(), layout), range(10, 50), (), torch.float32)


def test_self_check_finds_a_leak_between_neighbours(score):
    class Leaking(TokenCollator):
        def __call__(self, examples, skipped=()):
            batch = super().__call__(examples, skipped)
            arguments = batch.inputs.arguments
            if 'segments' in arguments:
                arguments['segments'] = AttentionPlan((Span(0, arguments['input_ids'].numel()),))
            return batch

    with pytest.raises(LayoutMismatch, match="neighbour's tokens"):
        check_layout(score, Leaking(TextFamily(), 'packed'), range(10, 50), (), torch.float32)


def test_self_check_finds_a_model_that_sees_the_future(score):
    def future(batch):
        return score(batch) + batch.inputs.targets.sum() * 0.01

    with pytest.raises(LayoutMismatch, match="neighbour's tokens|later token"):
        check_layout(future, TokenCollator(TextFamily(), 'padded'), range(10, 50), (), torch.float32)


def test_self_check_finds_an_undeclared_logit_scale(policy, score):
    batch = TokenCollator(TextFamily(), 'padded')([PAIR, SINGLE])
    check_head(score, lambda b: policy.model(**b.inputs.arguments).logits, batch, torch.float32)
    with pytest.raises(LayoutMismatch, match="model's own logits"):
        check_head(score, lambda b: 2 * policy.model(**b.inputs.arguments).logits, batch, torch.float32)


def test_attention_that_compiled_layers_leave_out_is_not_put_back_by_the_check(monkeypatch) -> None:
    from transformers import AttentionInterface

    monkeypatch.setattr(AttentionInterface, '_global_mapping', dict(AttentionInterface._global_mapping))
    register_segment_attention(compiled=True)
    left_out = AttentionInterface()[SEGMENT_ATTENTION]
    policy = plain_policy(tiny_llama())
    measured_allowance(lambda batch: policy(batch).values, policy.collate, range(10, 50), policy.model, torch.float32)
    assert AttentionInterface()[SEGMENT_ATTENTION] is left_out is not segment_attention
