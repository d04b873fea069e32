"""Stop strings end a response with the token that completes one; what is cut off its text is trained all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from align_anything.configs.online import OnlineModelCfgs
from align_anything.core.errors import SettingsError
from align_anything.models.family import FamilySpec
from align_anything.rollouts.base import Sampling, sampled, stop_string_end
from align_anything.rollouts.hf import HFRollouts
from align_anything.trainers.runs.rollout_engine import check_rollouts
from tests.models.mixed import policy_of
from tests.models.samples import load
from tests.rollouts.test_hf import prompts
from tests.trainers.test_rewarding import settings

Tiny = Callable[..., Path]
SAMPLING = Sampling(responses=3, max_new_tokens=12, seed=5)


@pytest.fixture(scope='module')
def engine(tiny: Tiny) -> HFRollouts:
    spec = load(tiny('qwen2'))
    return HFRollouts(policy_of(tiny('qwen2'), spec, 'padded').model, spec, dtype=torch.float32, batch_size=8)


def text_of(response) -> str:
    return ''.join(part['text'] for part in response.parts)


@pytest.mark.parametrize('keeps', [True, False])
@pytest.mark.parametrize('where', [(0, 0, 3), (0, 1, 6), (1, 2, 9)])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(
    where: tuple[int, int, int], keeps: bool, engine: HFRollouts
) -> None:
    spec, examples = engine.spec, prompts(engine.spec, 'qwen2')
    whole = engine.generate(examples, SAMPLING)
    prompt, number, at = where
    # The last character of one token with the first of the next: it is complete in the middle of a token.
    ids = whole[prompt][number].ids.tolist()
    stop = (spec.text_of(ids[: at + 1])[-1] + spec.text_of(ids[at + 1 : at + 2])[:1], 'never said')
    cut = engine.generate(examples, replace(SAMPLING, stop=stop, include_stop_str_in_output=keeps))
    ended = 0
    for before, after in zip(sum(whole, []), sum(cut, []), strict=True):
        ids = before.ids.tolist()
        lengths = [length for length in range(1, len(ids) + 1) if stop[0] in spec.text_of(ids[:length])]
        length = lengths[0] if lengths else len(ids)
        assert after.ids.tolist() == ids[:length] and after.units == length
        torch.testing.assert_close(after.per_unit['rollout'], before.per_unit['rollout'][:length])
        assert after.finished == bool(lengths)
        said = spec.text_of(ids[:length])
        assert text_of(after) == (said if keeps or not lengths else said[: said.index(stop[0])])
        ended += after.finished
    assert 0 < ended < len(sum(whole, []))


def test_the_prompt_completes_no_stop_string(engine: HFRollouts) -> None:
    examples = prompts(engine.spec, 'qwen2')
    stop = ('assistant', '1 + 1')
    assert all(string in engine.spec.text_of(example.prompt.ids.tolist()) for example in examples for string in stop)
    # A seed by which no response says one of them.
    sampling = replace(SAMPLING, seed=7)
    whole = sum(engine.generate(examples, sampling), [])
    assert not any(string in text_of(response) for response in whole for string in stop)
    found = sum(engine.generate(examples, replace(sampling, stop=stop)), [])
    assert [response.ids.tolist() for response in found] == [response.ids.tolist() for response in whole]


def response_of(spec: FamilySpec, text: str, stop: tuple[str, ...], keeps: bool = True):
    ids = [*spec.tokenizer(text, add_special_tokens=False).input_ids, spec.pad_token_id, spec.pad_token_id]
    sampling = Sampling(stop=stop, include_stop_str_in_output=keeps)
    return sampled(spec, ids, [0.0] * len(ids), 0, sampling)


def test_the_first_stop_string_and_the_end_token_whichever_comes_first(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    assert text_of(response_of(spec, 'one</answer> two', ('</answer>',))).startswith('one</answer>')
    assert text_of(response_of(spec, 'one</answer> two', ('two', '</answer>'), keeps=False)) == 'one'
    # Special tokens are text like any other.
    special = response_of(spec, 'one<|im_start|> two<|im_end|>', ('<|im_start|>',))
    assert text_of(special) == 'one<|im_start|>' and special.finished
    early = response_of(spec, 'one<|im_end|> two</answer>', ('</answer>',))
    assert text_of(early) == 'one' and early.finished and spec.tokenizer.decode(early.ids) == 'one<|im_end|>'
    assert stop_string_end(spec, [], ('x',)) is None and stop_string_end(spec, [5, 6], ()) is None


def test_characters_of_several_tokens(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    response = response_of(spec, 'a 雪 falls', ('雪',), keeps=False)
    assert len(spec.tokenizer('雪').input_ids) > 1 and text_of(response) == 'a '
    assert spec.tokenizer.decode(response.ids) == 'a 雪'


def test_settings_of_stop_strings_are_checked() -> None:
    with pytest.raises(ValidationError, match='stop.0'):
        OnlineModelCfgs(stop=[''])
    with pytest.raises(SettingsError, match='include_stop_str_in_output .* without model_cfgs.stop'):
        check_rollouts(settings('--reward_functions', '[format]', '--include_stop_str_in_output', 'False'))
    check_rollouts(settings('--stop', '[</answer>]', '--include_stop_str_in_output', 'False'))
