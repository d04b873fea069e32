"""Codes that are sampled at once: scored where their placeholders stand, which see each other and nothing later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from align_anything.configs.schema import RunCfgs
from align_anything.core.actions import ActionSpace
from align_anything.core.errors import SettingsError
from align_anything.core.types import Batch, Example, Piece
from align_anything.models.action_codes import ActionTokens, action_codes
from align_anything.models.codes import CHUNK, MediaCodes
from align_anything.models.encoding import join
from align_anything.policies.token.attention import (
    SEGMENT_ATTENTION,
    AttentionPlan,
    chunk_blocks,
    mask_with_blocks,
    register_segment_attention,
)
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import BLOCKS, LAYOUTS
from align_anything.policies.token.plan import require_parallel
from align_anything.policies.token.policy import TokenPolicy
from align_anything.policies.token.selfcheck import LayoutMismatch, check_layout
from align_anything.policies.token.spans import Span
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.vllm import check_vllm_emission

from .stub import TextFamily, example, piece, tiny_llama

BOOKS, FIRST, STEPS = (5, 3), (20, 30), 2
OWN = ActionTokens('action', BOOKS, FIRST, size=(STEPS,), in_text=True, parallel=True)
LENGTH = STEPS * len(BOOKS)
CODES = MediaCodes({'action': OWN}, {}, restricted=True, begins=True)


@dataclass(frozen=True)
class Acting(TextFamily):
    codes: MediaCodes = CODES


def chunk(*codes: int) -> Piece:
    """A turn that says these codes."""
    numbers = torch.arange(1, LENGTH + 1)
    ids = torch.tensor([FIRST[at % 2] + code for at, code in enumerate(codes)])
    return Piece(ids, torch.ones(LENGTH), token_tensors={CHUNK: numbers})


EXAMPLES = [
    # Text that is read may hold ids of codes, and two turns may meet with nothing between them.
    example(piece(11, 22, 13), join([chunk(4, 2, 0, 1), piece(2, 15, 31), chunk(1, 0, 3, 2)])),
    example(piece(14, 15), join([chunk(0, 0, 2, 2), chunk(4, 1, 4, 1), piece(2)]), join([chunk(3, 1, 1, 0), piece(2)])),
]


def plainly(model: torch.nn.Module, one: Example, response: Piece, restricted: bool) -> list[Tensor]:
    """The scores of one sequence in float64, by a mask that is written down entry by entry."""
    counted = [0] * len(one.prompt) + response.token_tensors[CHUNK].tolist()
    said = [*one.prompt.ids.tolist(), *response.ids.tolist()]
    turn, turns = 0, []
    for count in counted:
        turn += count == 1
        turns.append(turn if count else None)
    read = [FIRST[(count - 1) % 2] if count else token for token, count in zip(said, counted, strict=True)]
    sees = [
        [key <= query or (turns[query] is not None and turns[key] == turns[query]) for key in range(len(said))]
        for query in range(len(said))
    ]
    logits = model(input_ids=torch.tensor([read]), attention_mask=torch.tensor(sees)[None, None]).logits[0]
    found = []
    for at, count in enumerate(counted):
        if count:
            book = (count - 1) % 2
            among = range(FIRST[book], FIRST[book] + BOOKS[book]) if restricted else range(50)
            found.append(logits[at, said[at]] - torch.logsumexp(logits[at, list(among)], 0))
    return found


@pytest.fixture(scope='module')
def model() -> torch.nn.Module:
    register_segment_attention()
    made = tiny_llama().double()
    made.set_attn_implementation(SEGMENT_ATTENTION)
    return made


@pytest.mark.parametrize('restricted', [True, False])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_scores_and_gradients_are_those_of_masks_written_down(
    layout: str, restricted: bool, model: torch.nn.Module
) -> None:
    family = Acting(codes=replace(CODES, restricted=restricted))
    policy = TokenPolicy(model, TokenCollator(family, layout), dtype=torch.float64)
    values = policy(policy.collate(EXAMPLES)).values
    wanted = torch.stack(
        [value for one in EXAMPLES for own in one.responses for value in plainly(model, one, own, restricted)]
    )
    torch.testing.assert_close(values.double(), wanted, atol=2e-6, rtol=0)
    parameters = [parameter for parameter in model.parameters()]
    found = torch.autograd.grad(values.square().sum(), parameters)
    for own, other in zip(found, torch.autograd.grad(wanted.square().sum(), parameters), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_what_was_sampled_is_never_read(model: torch.nn.Module) -> None:
    policy = TokenPolicy(model, TokenCollator(Acting(), 'packed'), dtype=torch.float64)
    batch = policy.collate(EXAMPLES)
    read = batch.inputs.arguments['input_ids'][0]
    assert read[3 : 3 + LENGTH].tolist() == [20, 30, 20, 30] and read[1] == 22, 'a text is read as it is'
    assert batch.inputs.targets.tolist()[:LENGTH] == [24, 32, 20, 31]
    assert torch.equal(batch.inputs.score_index, batch.inputs.target_index)


def test_blocks_are_turns_wherever_they_begin() -> None:
    counted = torch.tensor([0, 1, 2, 3, 1, 2, 0, 0, 1, 2, 2, 3])
    assert chunk_blocks(counted).tolist() == [0, 1, 1, 1, 2, 2, 0, 0, 3, 3, 4, 4]
    assert chunk_blocks(counted, [0, 5]).tolist() == [0, 1, 1, 1, 2, 3, 0, 0, 4, 4, 5, 5]
    mask = mask_with_blocks(torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 0]]), torch.float32)
    assert (mask[0, 0] == 0).int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    plan = AttentionPlan((Span(0, 4),), torch.tensor([0, 1, 1, 0]))
    assert plan.mask(Span(0, 4), None, torch.device('cpu')).int().tolist()[1] == [1, 1, 1, 0]


def score(model: torch.nn.Module) -> TokenPolicy:
    return TokenPolicy(model, TokenCollator(Acting(), 'padded'), dtype=torch.float64)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_self_check_passes(layout: str, model: torch.nn.Module) -> None:
    policy = score(model)
    check_layout(lambda batch: policy(batch).values, TokenCollator(Acting(), layout), range(10, 20), (), torch.float64)


class Causal(TokenCollator):
    """Loses what lets placeholders see each other."""

    def __call__(self, examples: Sequence[Example], skipped: Sequence = ()) -> Batch:
        batch = super().__call__(examples, skipped)
        arguments = batch.inputs.arguments
        arguments.pop(BLOCKS, None)
        if 'segments' in arguments:
            arguments['segments'] = AttentionPlan(arguments['segments'].spans)
        return batch


class Merged(TokenCollator):
    """Lets all turns of a row see each other."""

    def __call__(self, examples: Sequence[Example], skipped: Sequence = ()) -> Batch:
        batch = super().__call__(examples, skipped)
        arguments = batch.inputs.arguments
        if BLOCKS in arguments:
            arguments[BLOCKS] = arguments[BLOCKS].clamp(max=1)
        if 'segments' in arguments:
            plan = arguments['segments']
            arguments['segments'] = AttentionPlan(plan.spans, plan.blocks.clamp(max=1))
        return batch


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    ('broken', 'words'),
    [(Causal, 'do not see those behind them in the .* as if the mask were causal'), (Merged, 'a later turn changes')],
)
def test_self_check_finds_masks_that_are_lost(
    broken: type[TokenCollator], words: str, layout: str, model: torch.nn.Module
) -> None:
    policy = score(model)
    with pytest.raises(LayoutMismatch, match=words):
        check_layout(lambda batch: policy(batch).values, broken(Acting(), layout), range(10, 20), (), torch.float64)


def test_vllm_is_refused_by_name() -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=50))
    spec = SimpleNamespace(codes=CODES, config=config, model_type='acting', not_in_vllm='')
    with pytest.raises(SettingsError, match='sampled at once, .* and vLLM samples one token behind the other'):
        check_vllm_emission(spec, Sampling())
    spec.codes = MediaCodes({'action': replace(OWN, parallel=False)}, {}, restricted=True)
    check_vllm_emission(spec, Sampling())


def test_a_space_says_how_its_tokens_are_sampled() -> None:
    space = ActionSpace(names=('left', 'right'), tokens='tail', first_ids=(40,), chunk=2, decoding='parallel')
    assert ActionSpace.from_json(json.loads(json.dumps(space.to_json()))) == space
    assert action_codes(space).parallel.length((2,)) == 2 and action_codes(replace(space, decoding='autoregressive'))
    assert ActionSpace.from_json({'names': ['left']}).decoding == 'autoregressive', 'a file that was written before'
    for changes, words in (
        ({'tokens': 'words'}, 'decoding is parallel, but only reserved tokens'),
        ({'tokens': ''}, 'decoding is parallel, but only reserved tokens'),
        ({'decoding': 'paralel'}, "decoding 'paralel' is none of autoregressive, parallel"),
    ):
        assert any(words in problem for problem in replace(space, **changes).problems())


def test_what_could_not_be_said_at_once_is_refused() -> None:
    class Text(SimpleNamespace):
        def to_dict(self) -> dict[str, int]:
            return {'sliding_window': 64}

    config = SimpleNamespace(get_text_config=lambda decoder: Text())
    spec = SimpleNamespace(
        codes=CODES, config=config, model_type='acting', max_length=128, layouts=('padded',), bidirectional_media=True
    )
    cfgs = RunCfgs(
        train_cfgs={'sequence_parallel_size': 2},
        model_cfgs={'model_name_or_path': 'model', 'attn_implementation': 'flash_attention_2'},
        data_cfgs={'train_on': 'all'},
    )
    with pytest.raises(SettingsError) as raised:
        require_parallel(cfgs, spec, judges=True)
    told = ' '.join(raised.value.problems)
    for words in ('masks of their own', 'see themselves', 'a window of 64', 'reads no masks', 'ranks', 'all', 'judges'):
        assert words in told
    assert len(raised.value.problems) == 7
    spec.codes = None
    require_parallel(cfgs, spec, judges=True)
