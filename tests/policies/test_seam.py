"""What is no token goes through engines and algorithms as they are: nothing above a policy knows what a unit is."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.configs.schema import build_run_schema
from align_anything.core.types import Batch, Example, Piece, Response, Scored
from align_anything.engines.deepspeed_config import build_config
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.step import StepResult
from align_anything.policies.base import Policy
from align_anything.policies.token.logprob import LogProbHead
from align_anything.rollouts.experience import Rollout, record
from align_anything.trainers.loops.failing import Failing
from align_anything.trainers.loops.online import OnlineLoop
from align_anything.trainers.loops.progress import Progress
from tests.harness.local_engine import LocalEngine
from tests.harness.ranks import run_ranks
from tests.policies.gaussian import FEATURES, GaussianPolicy, PointCollator

KNOWN = known_algorithms()
ALGORITHMS: dict[str, Algorithm] = {
    'sft': KNOWN['sft'](),
    'dpo': KNOWN['dpo'](scale_coeff=0.3),
    'kto': KNOWN['kto'](scale_coeff=0.3, scale_worse=0.7),
    'grpo': KNOWN['grpo'](num_generations=2, beta=0.2, entropy_coeff=0.1, ptx_coeff=0.0, rollout_correction_cap=None),
}
# Of each prompt: units of the better response, the worse one, and that of another row.
UNITS = ((4, 1, 2), (1, 3, 5), (2, 2, 1), (5, 6, 3))
CUTS = ([[0, 1, 2, 3]], [[0], [1, 2, 3]], [[3, 1], [], [0], [2]])


@cache
def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(1)

    def response(units: int) -> Piece:
        numbers = {name: torch.randn(units, generator=generator).double() for name in ('old', 'advantage', 'reference')}
        numbers['old'] = 0.1 * numbers['old'] - 3.0
        points = torch.randn(units, 2, generator=generator)
        return Piece(torch.arange(units), torch.ones(units), {'points': points}, per_unit=numbers)

    def row(number: int, better: int, worse: int, other: int) -> Example:
        prompt = Piece(torch.zeros(0), torch.zeros(0), {'features': torch.randn(1, FEATURES, generator=generator)})
        meta = {'desirable': [True, False]}
        return Example(prompt, [response(better), response(worse)], f'row {number}', meta, response(other))

    return [row(number, *units) for number, units in enumerate(UNITS)]


def rows_of(name: str) -> list[Example]:
    """Supervision of a point weighs it by its number, and leaves the first one of each out but where it is alone."""
    if name != 'sft':
        return examples()

    def weighted(piece: Piece) -> Piece:
        return replace(
            piece, weights=torch.arange(len(piece)).float() if len(piece) > 1 else piece.weights, per_unit={}
        )

    return [replace(item, responses=[weighted(piece) for piece in item.responses]) for item in examples()]


def roles_of(name: str, dtype: torch.dtype) -> dict[str, Policy]:
    frozen = GaussianPolicy(dtype, seed=5).requires_grad_(False)
    return {'reference': frozen} if name in ('dpo', 'kto') else {}


def micro_batches(name: str, cut: Sequence[Sequence[int]]) -> list[Batch]:
    return [PointCollator()([rows_of(name)[number] for number in part]) for part in cut]


def step(name: str, cut: Sequence[Sequence[int]]) -> tuple[StepResult, dict[str, Tensor]]:
    policy: Policy = GaussianPolicy(torch.float64)
    engine = LocalEngine(policy, torch.optim.SGD(policy.parameters(), lr=0.0))
    result = engine.train_step(micro_batches(name, cut), ALGORITHMS[name], roles_of(name, torch.float64))
    return result, {key: value.grad for key, value in policy.named_parameters()}


def density(policy: GaussianPolicy, prompt: Piece, point: Tensor) -> Tensor:
    """One point, by the formula."""
    feature, total = prompt.media['features'][0].double(), torch.zeros((), dtype=torch.float64)
    for axis in range(2):
        mean = (policy.model.weight[axis] * feature).sum() + policy.model.bias[axis]
        scale = policy.model.log_scale[axis].exp()
        total = total - (point[axis].double() - mean) ** 2 / (2 * scale**2) - (scale * math.sqrt(2 * math.pi)).log()
    return total


def plain(name: str) -> tuple[Tensor, GaussianPolicy]:
    """The loss of all rows, one unit after another, and what it is of."""
    policy, reference = GaussianPolicy(torch.float64), GaussianPolicy(torch.float64, seed=5)

    def logs(prompt: Piece, piece: Piece, of: GaussianPolicy = policy) -> list[Tensor]:
        return [density(of, prompt, point) for point in piece.media['points']]

    def ratio(prompt: Piece, piece: Piece) -> Tensor:
        return sum(logs(prompt, piece)) - sum(logs(prompt, piece, reference)).detach()

    rows = rows_of(name)
    if name == 'sft':
        units = [
            (weight.double(), value)
            for row in rows
            for piece in row.responses
            for weight, value in zip(piece.weights, logs(row.prompt, piece), strict=True)
        ]
        return -sum(weight * value for weight, value in units) / sum(weight for weight, _ in units), policy
    if name == 'dpo':
        deltas = [ratio(row.prompt, row.responses[0]) - ratio(row.prompt, row.responses[1]) for row in rows]
        return sum((1 + (-0.3 * delta).exp()).log() for delta in deltas) / len(rows), policy
    if name == 'kto':
        z = float(sum(ratio(row.prompt, row.unmatched) for row in rows).detach()) / len(rows)
        assert z > 0, 'else it would count as zero'
        better = [1 - torch.sigmoid(0.3 * (ratio(row.prompt, row.responses[0]) - z)) for row in rows]
        worse = [0.7 * (1 - torch.sigmoid(0.3 * (z - ratio(row.prompt, row.responses[1])))) for row in rows]
        return sum([*better, *worse]) / (2 * len(rows)), policy
    entropy = sum(policy.model.log_scale) + 1 + math.log(2 * math.pi)
    means = []
    for row in rows:
        for piece in row.responses:
            losses = []
            for number, value in enumerate(logs(row.prompt, piece)):
                old, advantage, other = (piece.per_unit[key][number] for key in ('old', 'advantage', 'reference'))
                grown, drift = (value - old).exp(), other - value
                kept = torch.minimum(grown * advantage, grown.clamp(0.8, 1.2) * advantage)
                losses.append(-kept + 0.2 * (drift.exp() - drift - 1) - 0.1 * entropy)
            means.append(sum(losses) / len(losses))
    return sum(means) / len(means), policy


@pytest.mark.parametrize('name', ALGORITHMS)
def test_every_cut_gives_loss_and_gradients_of_one_unit_after_another(name: str) -> None:
    loss, policy = plain(name)
    loss.backward()
    for cut in CUTS:
        result, found = step(name, cut)
        assert result.loss == pytest.approx(float(loss.detach()), rel=1e-9), cut
        for key, parameter in policy.named_parameters():
            assert parameter.grad.abs().max() > 1e-4
            torch.testing.assert_close(found[key], parameter.grad, rtol=1e-8, atol=1e-10, msg=f'{key}, {cut}')


def test_a_score_is_that_of_its_unit_alone() -> None:
    policy, collate = GaussianPolicy(torch.float64), PointCollator()
    found = policy(collate(examples()), entropy=True)
    alone = [
        policy(collate([replace(item, responses=[piece])])).values for item in examples() for piece in item.responses
    ]
    assert torch.equal(found.values, torch.cat(alone)) and found.entropy.shape == found.values.shape
    wanted = [density(policy, item.prompt, p) for item in examples() for r in item.responses for p in r.media['points']]
    torch.testing.assert_close(found.values, torch.stack(wanted))


def test_what_was_just_recorded_has_a_ratio_of_one() -> None:
    policy = GaussianPolicy(torch.float64)
    rollout = copy.deepcopy(examples())

    def infer(batch: Batch) -> Scored:
        with torch.no_grad():
            return policy(batch)

    assert record('old', infer, policy.collate, [rollout[:1], [], rollout[1:]], torch.device('cpu')) is None
    engine = LocalEngine(policy, torch.optim.SGD(policy.parameters(), lr=0.1))
    before, after = (engine.train_step([policy.collate(rollout)], ALGORITHMS['grpo']).terms['ratio'] for _ in range(2))
    assert before == pytest.approx(1.0, abs=1e-6) and abs(after - 1.0) > 1e-3


def under_deepspeed(rank: int) -> dict[str, tuple[float, dict[str, Tensor]]]:
    run = {'micro_batch': 2, 'accumulation': 2, 'world_size': 1, 'precision': 'fp32', 'max_grad_norm': 0.0}
    config = build_config({'zero_optimization': {'stage': 0}}, optimizer='adamw_torch', **run)
    policy = GaussianPolicy(torch.float32)
    engine = DeepSpeedEngine(
        policy, config, torch.optim.SGD(policy.parameters(), lr=0.05),
        lambda base: torch.optim.lr_scheduler.ConstantLR(base, factor=1.0),
    )  # fmt: skip
    policy.check(engine.engine, engine.device)
    found = {}
    for name, algorithm in ALGORITHMS.items():
        result = engine.train_step(micro_batches(name, CUTS[2]), algorithm, roles_of(name, torch.float32))
        found[name] = result.loss, engine.full_state_dict(engine.policy.model)
    return found


def test_deepspeed_steps_as_one_process() -> None:
    [found] = run_ranks(under_deepspeed, 1)
    policy = GaussianPolicy(torch.float64)
    engine = LocalEngine(policy, torch.optim.SGD(policy.parameters(), lr=0.05))
    for name, algorithm in ALGORITHMS.items():
        result = engine.train_step(micro_batches(name, CUTS[0]), algorithm, roles_of(name, torch.float64))
        loss, state = found[name]
        assert loss == pytest.approx(result.loss, rel=1e-5), name
        for key, value in policy.model.state_dict().items():
            torch.testing.assert_close(state[key].double(), value, rtol=1e-5, atol=1e-5, msg=f'{name}: {key}')


def generated() -> list[Example]:
    """Responses that somebody interrupted: the second of their points, where there is one, is not the policy's."""
    rows = []
    for row in examples():
        responses = []
        for piece in row.responses:
            weights = torch.ones(len(piece))
            weights[1:2] = 0.0
            response = Response(piece.ids, weights, piece.media)
            response.per_unit['rollout'] = torch.zeros(response.units)
            responses.append(response)
        rows.append(replace(row, responses=responses, unmatched=None))
    return rows


def test_the_online_loop_learns_from_a_rollout_of_points() -> None:
    """With advantages by response, the scores of policy and reference at each unit, and an update in two steps."""
    policy, reference = GaussianPolicy(torch.float64), GaussianPolicy(torch.float64, seed=5).requires_grad_(False)
    local, start = LocalEngine(policy, torch.optim.SGD(policy.parameters(), lr=0.1)), copy.deepcopy(policy)
    cpu, grpo = torch.device('cpu'), ALGORITHMS['grpo'].model_copy(update={'per_device_prompt_batch_size': 4})
    engine = SimpleNamespace(policy=policy, device=cpu, infer=torch.no_grad()(policy), train_step=local.train_step)
    cfgs = build_run_schema(KNOWN['grpo'])(train_cfgs={'per_device_train_batch_size': 4})
    given: dict[str, Any] = dict.fromkeys(field.name for field in fields(OnlineLoop) if field.init)
    given |= {'cfgs': cfgs, 'algorithm': grpo, 'engine': engine, 'critics': {}, 'reference': reference, 'steps': 9}
    given |= {'spec': SimpleNamespace(meets='probability'), 'failing': Failing(None, '', None)}
    training = SimpleNamespace(sampler=SimpleNamespace(cursor=lambda epoch, step: None))
    given |= {'progress': Progress(), 'training': training, '_seconds': {}, '_unusable': []}
    loop = OnlineLoop(**given)
    scores = torch.tensor([1.0, 0.0, 0.0, 3.0, 2.0, 2.0, -1.0, 1.0])
    trained = loop._learn_from(Rollout(generated(), {'right': scores}, scores))
    flat = [(row.prompt, response) for row in trained for response in row.responses]
    for number, (prompt, response) in enumerate(flat):
        points = response.media['points'][response.weights > 0]
        other = scores[number ^ 1]
        deviation = (scores[number] - other).abs() / 2**0.5
        advantage = (scores[number] - other) / 2 / (deviation + 1e-4)
        assert len(points) == response.units == len(response) - (len(response) > 1)
        torch.testing.assert_close(response.per_unit['advantage'], advantage.expand(len(points)))
        for name, by in (('old', start), ('reference', reference)):
            wanted = torch.stack([density(by, prompt, point) for point in points]).float()
            torch.testing.assert_close(response.per_unit[name], wanted)
    results, _ = loop._update(trained)
    assert loop.progress.step == len(results) == 2
    assert results[0].terms['ratio'] == pytest.approx(1.0, abs=1e-5) and abs(results[1].terms['ratio'] - 1.0) > 1e-3
    assert not torch.equal(policy.model.weight, start.model.weight)


def test_the_temperature_is_what_was_said_last() -> None:
    head = LogProbHead(torch.nn.Linear(4, 8), scale=2.0, softcap=3.0)
    for policy in (head, GaussianPolicy(torch.float64)):
        policy.set_temperature(0.5)
        policy.set_temperature(0.5)
    assert (head.scale, head.softcap) == (4.0, 6.0)
    head.set_temperature(1.0)
    assert (head.scale, head.softcap) == (2.0, 3.0)
