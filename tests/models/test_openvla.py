"""OpenVLA by code of its own, on a stand-in: its prompt, its bins, its statistics, its scores, and what it samples."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from align_anything.core.actions import Actions
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Example, Response
from align_anything.models.action_space import act_in
from align_anything.models.families.openvla import ARM, OpenVLASpec
from align_anything.models.own_code import MARKS
from align_anything.models.pretrained_model import load_model, load_pretrained_models, load_spec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.grammar import Emission
from align_anything.rollouts.hf import HFRollouts
from tests.models.acting import acted
from tests.models.common import lora_cfgs
from tests.models.mixed import whole
from tests.models.samples import picture, user
from tests.models.stand_ins.openvla import BINS, NORM_STATS, build_openvla

PATCHES = 4
STEP = [0.3, -1.5, 0.9, 0.0, -0.4, 0.1, 1.0]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in."""
    return build_openvla(tmp_path_factory.mktemp('openvla') / 'openvla')


def loaded(folder: Path, restricted: bool = False) -> tuple[OpenVLASpec, TokenPolicy]:
    """Its spec, of one of its datasets, and a policy of its weights."""
    spec = load_spec(folder, trust_remote_code=True)
    act_in(spec, replace(spec.space, dataset='bridge_orig'))
    spec.codes = replace(spec.codes, begins=True, restricted=restricted)
    model = load_model(folder, spec.components, trust_remote_code=True).eval()
    return spec, TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)


def step_of(task: str = 'open the drawer', *values: float, colour: str = 'red') -> list[Any]:
    return [user(task, picture(40, 30, colour)), acted(list(values or STEP))]


def scores(spec: Any, policy: TokenPolicy, examples: list[Example], **how: Any) -> torch.Tensor:
    with torch.no_grad():
        return policy(TokenCollator(spec, 'padded', **how)(examples)).values


def test_norm_stats_are_the_action_space(folder: Path) -> None:
    with pytest.raises(ModelError, match='set trust_remote_code if you trust'):
        load_spec(folder)
    spec = load_spec(folder, trust_remote_code=True)
    space = spec.space
    assert (space.dimensions, space.bins, space.binning, space.tokens) == (ARM, BINS, 'openvla', 'tail')
    # The last ids of the vocabulary, not of the rows that it is padded to.
    assert space.first_ids == (spec.tokenizer.vocab_size - BINS,) * 7 and spec.embedding_rows > 400
    own = NORM_STATS['bridge_orig']['action']
    found = space.of('bridge_orig')
    assert (found.low, found.high, found.mask) == tuple(tuple(own[name]) for name in ('q01', 'q99', 'mask'))
    with pytest.raises(SampleError, match=r"'bridge_orgi'.*bridge_orig.*There are: bridge_orig, fractal20220817_data"):
        space.of('bridge_orgi')
    with pytest.raises(SampleError, match='nothing says which statistics'):
        space.decode(torch.zeros(7, 1, dtype=torch.long))
    assert pickle.loads(pickle.dumps(spec)).space == space


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'mask': [True]}, '1 numbers for 7 dimensions'),
        ({'q01': None}, 'have no q01 of actions'),
    ],
)
def test_statistics_that_cannot_be_used_are_told(change: Any, words: str, folder: Path, tmp_path: Path) -> None:
    broken = build_openvla(tmp_path / 'broken')
    config = json.loads((broken / 'config.json').read_text())
    action = {**config['norm_stats']['bridge_orig']['action'], **change}
    config['norm_stats']['bridge_orig']['action'] = {key: value for key, value in action.items() if value is not None}
    (broken / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load_spec(broken, trust_remote_code=True)


def test_ids_and_scores_are_those_of_its_own_code(folder: Path) -> None:
    spec, policy = loaded(folder)
    example = spec.encode(step_of())
    piece = whole(spec, example)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    prompt = 'In: What action should the robot take to open the drawer?\nOut: '
    own = processor(prompt, picture(40, 30)['image'])
    first, vocabulary = spec.space.first_ids[0], spec.tokenizer.vocab_size
    (actions,) = [part['action'] for part in step_of()[1]['content']]
    digits = spec.space.encode(actions)[:, 0] + first
    assert digits.min() >= vocabulary - BINS and digits.max() < vocabulary
    ids = torch.cat([own['input_ids'][0], digits, torch.tensor([spec.tokenizer.eos_token_id])])
    text = piece.token_tensors[MARKS] == 0
    assert int((~text).sum()) == PATCHES and bool((~text)[1 : 1 + PATCHES].all()), 'behind the first token'
    assert torch.equal(piece.ids[text], ids)
    assert example.responses[0].weights.tolist() == [1.0] * 8
    # By its own forward pass, which puts the patches in itself.
    with torch.no_grad():
        logits = policy.model(input_ids=ids[None], pixel_values=own['pixel_values']).logits[0]
    expected = logits.log_softmax(-1)[-9:-1].gather(1, ids[-8:, None])[:, 0]
    torch.testing.assert_close(scores(spec, policy, [example]), expected, atol=1e-5, rtol=1e-5)
    # And what ids say is what it would do.
    done = spec.space.decode(digits[:, None] - first, 'bridge_orig').values[0]
    np.testing.assert_allclose(done, policy.model.unnormalized(digits, 'bridge_orig'), rtol=1e-12)
    assert np.abs(done.numpy() - STEP).max() < 0.2


def test_neighbours_padding_dummies_and_later_turns_do_not_matter(folder: Path) -> None:
    spec, policy = loaded(folder)
    longer = [*step_of(), user(picture(20, 20, 'blue')), acted([0.1] * 7)]
    examples = [spec.encode(turns) for turns in (step_of(), step_of('wave', colour='green'), longer)]
    assert examples[2].responses[0].media_counts == {'image': 1}
    alone = [scores(spec, policy, [example]) for example in examples]
    together = scores(spec, policy, examples, dummy_kinds=('image',))
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(alone[2][:8], alone[0], atol=2e-5, rtol=1e-5)
    assert not torch.allclose(scores(spec, policy, [spec.encode(step_of(colour='green'))]), alone[0], atol=1e-4)


def test_what_is_sampled_is_legal_and_scored_as_it_was(folder: Path) -> None:
    spec, policy = loaded(folder, restricted=True)
    rows = [[user(task, picture(30, 30, colour))] for task, colour in (('go', 'red'), ('stop and wait', 'blue'))]
    examples = [Example(spec.encode_prompt(turns), [], conversation=turns) for turns in rows]
    engine = HFRollouts(policy.model, spec, dtype=torch.float32, batch_size=4)
    engine.sync(1)
    how = Sampling(responses=2, max_new_tokens=8, seed=1, emit=Emission({'action': None}, 'action'))
    made = engine.generate(examples, how)
    first = spec.space.first_ids[0]
    for example, responses in zip(examples, made, strict=True):
        for response in responses:
            assert type(response) is Response and response.weights.tolist() == [1.0] * 7 + [0.0]
            assert bool(((response.ids[:7] >= first) & (response.ids[:7] < first + BINS)).all())
            (part,) = spec.decode(response)
            actions = spec.codes.rules['action'].open().decode(part['action'].codes)
            assert type(actions) is Actions and actions.values.shape == (1, 7)
            found = scores(spec, policy, [Example(example.prompt, [response])])
            torch.testing.assert_close(found, response.per_unit['rollout'], atol=2e-5, rtol=1e-5)
    assert len({tuple(response.ids.tolist()) for responses in made for response in responses}) > 2


def test_adapters_and_gradients_reach_every_part(folder: Path) -> None:
    spec, policy = loaded(folder)
    names = [name for name, _ in policy.model.named_parameters()]
    assert {spec.component_of(name) for name in names} == set(spec.components)
    policy(TokenCollator(spec, 'padded')([spec.encode(step_of())])).values.sum().backward()
    reached = {spec.component_of(name) for name, p in policy.model.named_parameters() if p.grad is not None}
    assert reached == {'vision_tower', 'mm_proj', 'language_model'}
    model, _, _ = load_pretrained_models(folder, trust_remote_code=True, lora_cfgs=lora_cfgs())
    trained = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)
    trained(TokenCollator(spec, 'padded')([spec.encode(step_of())])).values.sum().backward()
    changed = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert changed and all('lora' in name for name in changed)
