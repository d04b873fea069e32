"""Responses of several turns with what nobody sampled between them: every online algorithm, against a plain loop.

A scripted engine says the turns; a plain model of transformers says their log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.online import Online
from align_anything.core.types import Example, Response
from align_anything.rollouts.base import Sampling, end_of
from align_anything.rollouts.experience import Rollout, complete, record
from align_anything.trainers.loops.online import OnlineLoop
from tests.algorithms.test_online import whitened
from tests.trainers.runs import lines, run, text_rows, write_rows
from tests.trainers.test_online import REWARDS, argv, named
from tests.trainers.test_scoring import with_head

OBSERVED = '<|im_end|>\n<|im_start|>user\nthe sea has 3 stones<|im_end|>\n<|im_start|>assistant\n'
TURNS = [
    ['sun sea', 'moon<|im_end|>'],
    ['tree', 'stone bird cloud', 'river field<|im_end|>'],
    ['house road lamp door'],  # a single turn, clipped at the length limit
    ['fish', 'salt wind'],
]
ONLINE = sorted(name for name, kind in known_algorithms().items() if kind.generates and kind.trains)
SCHEDULES = {
    'kl_coeff': 0.3,
    'gamma': 0.9,
    'gae_lambda': 0.8,
    'bootstrap_truncated': True,
    'beta': 0.3,
    'scale_coeff': 3.0,
}


@dataclass
class Scripted:
    """Says the turns of TURNS, one after the other; between them stands what an environment said."""

    tokenizer: Any
    stops: Sequence[int]
    score: Callable[[list[Example]], None]
    decode: Callable[[Response], list[dict[str, Any]]]
    said: int = 0
    version: int = 0

    def sync(self, version: int) -> None:
        self.version = version

    def sleep(self) -> None:
        pass

    def generate(self, examples: Sequence[Example], sampling: Sampling, tell: Any = None) -> list[list[Response]]:
        generated = [[self._response() for _ in range(sampling.responses)] for _ in examples]
        self.score(complete(examples, generated))
        return generated

    def _response(self) -> Response:
        turns = TURNS[self.said % len(TURNS)]
        self.said += 1
        ids: list[int] = []
        weights: list[float] = []
        for number, turn in enumerate(turns):
            for text, weight in ((OBSERVED, 0.0), (turn, 1.0))[number == 0 :]:
                added = self.tokenizer(text, add_special_tokens=False).input_ids
                ids, weights = ids + added, weights + [weight] * len(added)
        finished = end_of(ids[-1:], self.stops) is not None
        response = Response(torch.tensor(ids), torch.tensor(weights), finished=finished, version=self.version)
        response.parts = self.decode(response)
        # Until it is scored; the log-probabilities of what was sampled alone.
        response.per_unit['rollout'] = torch.zeros(response.units)
        return response


def scripted(folder: Path) -> Callable[[int], None]:
    """Lets a run generate by script, and writes what it learned from in its first rollout to `folder`."""

    def before(rank: int) -> None:
        from align_anything.trainers.runs import rollout_engine

        def opened(resolved: Any, policy: Any, spec: Any, sampling: Any) -> tuple[Scripted, Any]:
            def score(examples: list[Example]) -> None:
                record('rollout', policy.infer, policy.policy.collate, [[each] for each in examples], policy.device)

            return Scripted(spec.tokenizer, spec.stop_token_ids, score, spec.decode), spec.decode

        learn = OnlineLoop._learn_from

        def watched(loop: OnlineLoop, rollout: Rollout) -> list[Example]:
            trained = learn(loop, rollout)
            if not (folder / 'rollout.pt').exists():
                told = {'generated': rollout.examples, 'trained': trained}
                torch.save(
                    {
                        **{name: [_plainly(example) for example in examples] for name, examples in told.items()},
                        'costs': rollout.rewards.get('cost', torch.zeros(0)).tolist(),
                    },
                    folder / 'rollout.pt',
                )
            return trained

        rollout_engine.open_rollouts = opened
        OnlineLoop._learn_from = watched

    return before


def _plainly(example: Example) -> dict[str, Any]:
    return {'prompt': example.prompt.ids, 'responses': [dict(vars(response)) for response in example.responses]}


@dataclass
class Sampled:
    """One response with numbers of its units, as lists."""

    prompt: int
    length: int
    finished: bool
    score: float
    old: list[float]
    reference: list[float]
    values: dict[str, list[float]]
    bootstrap: dict[str, float]

    @property
    def penalties(self) -> list[float]:
        return [ours - theirs for ours, theirs in zip(self.old, self.reference, strict=True)]


def plain_logprobs(model: Any, prompt: torch.Tensor, response: dict[str, Any]) -> list[float]:
    """Log-probabilities of what was sampled, by a whole forward pass over prompt, turns and observations."""
    ids = torch.cat([prompt, response['ids']])
    logprobs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    sampled = (torch.cat([torch.zeros(len(prompt)), response['weights']]) > 0).nonzero().flatten().tolist()
    return [float(logprobs[position - 1, ids[position]]) for position in sampled]


def plain_values(model: Any, prompt: torch.Tensor, response: dict[str, Any]) -> tuple[list[float], float]:
    """What a critic expects before each of them, and behind the last."""
    ids = torch.cat([prompt, response['ids']])
    hidden = model.model(input_ids=ids[None]).last_hidden_state
    values = model.score(hidden)[0, :, 0].double()
    sampled = (torch.cat([torch.zeros(len(prompt)), response['weights']]) > 0).nonzero().flatten().tolist()
    return [float(values[position - 1]) for position in sampled], float(values[sampled[-1]])


def differentiable_logprobs(model: Any, prompt: torch.Tensor, response: dict[str, Any]) -> torch.Tensor:
    """As `plain_logprobs`, with a graph behind them."""
    ids = torch.cat([prompt, response['ids']])
    logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return logprobs[(torch.cat([torch.zeros(len(prompt)), response['weights']]) > 0)[1:]]


def norm_of(loss: torch.Tensor, model: Any) -> float:
    gradients = torch.autograd.grad(loss, [*model.parameters()])
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))


def gradient(
    name: str, prompts: list[dict[str, Any]], policy: Any, reference: Any, advantages: Sequence[torch.Tensor]
) -> float:
    """The norm of the gradient of the surrogate, and for GRPO of its divergence from the reference."""
    losses = []
    responses = [(prompt['prompt'], response) for prompt in prompts for response in prompt['responses']]
    for (prompt, response), own in zip(responses, advantages, strict=True):
        logprobs = differentiable_logprobs(policy, prompt, response)
        ratios = (logprobs - logprobs.detach()).exp()
        # The response is one action, how likely all of it is.
        loss = -(ratios.prod()[None] if name == 'rloo' else ratios) * own[: 1 if name == 'rloo' else None]
        if name == 'grpo':
            ratio = differentiable_logprobs(reference, prompt, response).detach() - logprobs
            loss = loss + 0.3 * (ratio.exp() - ratio - 1)
        losses.append(loss)
    by_response = name in ('grpo', 'rloo')
    total = sum(loss.mean() for loss in losses) / len(losses) if by_response else torch.cat(losses).mean()
    return norm_of(total, policy)


def gradient_of_pairs(prompts: list[dict[str, Any]], policy: Any, reference: Any) -> float:
    losses = []
    for prompt in prompts:
        chosen, rejected = (
            sum(
                sign * differentiable_logprobs(model, prompt['prompt'], response).sum()
                for model, sign in ((policy, 1.0), (reference, -1.0))
            )
            for response in prompt['responses']
        )
        losses.append(-torch.nn.functional.logsigmoid(3.0 * (chosen - rejected)))
    return norm_of(sum(losses) / len(losses), policy)


def rewards_of(turn: Sampled, kl_coeff: float, score: float) -> list[float]:
    rewards = [-kl_coeff * penalty for penalty in turn.penalties]
    return [*rewards[:-1], rewards[-1] + score]


def returns_of(turn: Sampled, score: float, gamma: float) -> list[float]:
    rewards = rewards_of(turn, 0.3, score)
    return [sum(gamma**ahead * reward for ahead, reward in enumerate(rewards[start:])) for start in range(len(rewards))]


def estimated(turn: Sampled, critic: str, rewards: list[float]) -> tuple[list[float], list[float]]:
    """GAE and returns: what stands between two turns is no step in time."""
    values, ahead, found = turn.values[critic], 0.0, []
    behind = 0.0 if turn.finished else turn.bootstrap[critic]
    for unit in reversed(range(len(values))):
        following = values[unit + 1] if unit + 1 < len(values) else behind
        ahead = rewards[unit] + 0.9 * following - values[unit] + 0.9 * 0.8 * ahead
        found.append(ahead)
    advantages = found[::-1]
    return advantages, [advantage + value for advantage, value in zip(advantages, values, strict=True)]


def expected_advantages(
    name: str, turns: list[Sampled], costs: list[float]
) -> tuple[list[float], dict[str, list[float]]]:
    """Advantages of all units, and returns by critic, by loops over responses."""
    others = [[other for other in turns if other.prompt == turn.prompt and other is not turn] for turn in turns]
    if name == 'grpo':
        found = []
        for turn, rest in zip(turns, others, strict=True):
            scores = [turn.score, *(other.score for other in rest)]
            mean = sum(scores) / len(scores)
            deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
            found += [(turn.score - mean) / (deviation + 1e-4)] * turn.length
        return found, {}
    if name == 'rloo':
        worth = {id(turn): turn.score - 0.3 * sum(turn.penalties) for turn in turns}
        return [
            worth[id(turn)] - sum(worth[id(other)] for other in rest) / len(rest)
            for turn, rest in zip(turns, others, strict=True)
            for _ in range(turn.length)
        ], {}
    if name in ('reinforce_plus_plus', 'multi_ppo'):
        return whitened([value for turn in turns for value in returns_of(turn, turn.score, 0.9)]), {}
    if name == 'saferlhf':
        rewards = [estimated(turn, 'reward_critic', rewards_of(turn, 0.15, turn.score)) for turn in turns]
        costly = [
            estimated(turn, 'cost_critic', rewards_of(turn, -0.15, cost))
            for turn, cost in zip(turns, costs, strict=True)
        ]
        weighed = [
            (reward - 2.0 * cost) / 3.0
            for (ours, _), (theirs, _) in zip(rewards, costly, strict=True)
            for reward, cost in zip(ours, theirs, strict=True)
        ]
        returns = {'reward_critic': rewards, 'cost_critic': costly}
        return whitened(weighed), {role: [value for _, own in all_ for value in own] for role, all_ in returns.items()}
    both = [estimated(turn, 'reward_critic', rewards_of(turn, 0.3, turn.score)) for turn in turns]
    returns = [value for _, own in both for value in own]
    return whitened([value for own, _ in both for value in own]), {'reward_critic': returns}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('turns')
    write_rows(folder / 'rows.jsonl', text_rows(4))
    write_rows(folder / 'held-out.jsonl', text_rows(2, seed=1))
    (folder / 'rewards.py').write_text(REWARDS)
    return folder


def moved(model: Path, folder: Path) -> Path:
    """Another model of the same tokens, from which the policy is some way off."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (file,) = folder.glob('*.safetensors')
    weights = {
        name: tensor * 1.3 if tensor.dim() > 1 else tensor for name, tensor in load_file(folder / file.name).items()
    }
    save_file(weights, folder / file.name, {'format': 'pt'})
    return folder


# ppo_vllm and ppo_remote_rm are PPO with another engine, which stands aside here, and another judge.
@pytest.mark.parametrize('name', [name for name in ONLINE if name not in ('ppo_vllm', 'ppo_remote_rm', 'nft')])
def test_every_online_algorithm_takes_several_turns(folder: Path, tiny: Any, tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    algorithm: type[Online] = named(name)
    reference, judge = moved(tiny('qwen2'), tmp_path / 'reference'), tmp_path / 'judge'
    judge.mkdir()
    with_head(tiny('qwen2'), judge)
    own = {key: value for key, value in SCHEDULES.items() if key in algorithm.model_fields}
    if 'reward_critic' in algorithm.trains:
        own['reward_critic_model_name_or_path'] = judge
    if 'cost_critic' in algorithm.trains:
        own |= {'cost_model_name_or_path': judge, 'lambda_init': 2.0, 'cost_critic_model_name_or_path': judge}
    changes = {
        'num_generations': 4,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 8,
        'update_iters': 1,
        'max_steps': 1,
        'max_new_tokens': 60,
        'eval_strategy': 'no',
        'reference_model_name_or_path': reference,
        'ds_cfgs': 'ds_z0_config.json',
        **own,
    }
    (ended,) = run(
        argv(folder, tmp_path / 'out', tiny('qwen2'), **changes), algorithm=algorithm, before=scripted(tmp_path)
    )
    assert ended.code == 0, ended.output
    told = torch.load(tmp_path / 'rollout.pt', weights_only=True)
    policy, other = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (tiny('qwen2'), reference))
    critic = AutoModelForSequenceClassification.from_pretrained(judge, num_labels=1).eval()
    turns = []
    with torch.no_grad():
        for number, prompt in enumerate(told['trained']):
            for response in prompt['responses']:
                units = int(response['weights'].sum())
                values, behind = plain_values(critic, prompt['prompt'], response)
                turns.append(
                    Sampled(
                        prompt=number,
                        length=units,
                        finished=response['finished'],
                        score=float(response['finished']) - units / 20,
                        old=plain_logprobs(policy, prompt['prompt'], response),
                        reference=plain_logprobs(other, prompt['prompt'], response),
                        values=dict.fromkeys(('reward_critic', 'cost_critic'), values),
                        bootstrap=dict.fromkeys(('reward_critic', 'cost_critic'), behind),
                    )
                )
    trained = [response for prompt in told['trained'] for response in prompt['responses']]
    assert any((response['weights'] == 0).any() for response in trained)
    for turn, response in zip(turns, trained, strict=True):
        per_unit = response['per_unit']
        assert turn.length == len(turn.old)
        assert per_unit['rollout'].tolist() == pytest.approx(turn.old, abs=1e-4)
        # Of one update on a rollout only what is taken off the reward asks for them before it.
        assert ('old' in per_unit) == (name not in ('grpo', 'dapo', 'gspo', 'online_dpo'))
        if 'old' in per_unit:
            assert per_unit['old'].tolist() == pytest.approx(turn.old, abs=1e-4)
        assert per_unit['reference'].tolist() == pytest.approx(turn.reference, abs=1e-4)
        for role in (role for role in algorithm.trains if role != 'policy'):
            assert per_unit[f'values/{role}'].tolist() == pytest.approx(turn.values[role], abs=1e-4)
    (metrics,) = (line for line in lines(tmp_path / 'out' / 'metrics.jsonl') if 'train/reward' in line)
    generated = [response for prompt in told['generated'] for response in prompt['responses']]
    assert len(generated) == 8
    lengths = [float(response['weights'].sum()) for response in generated]
    assert metrics['train/response_length'] == pytest.approx(sum(lengths) / 8)
    assert metrics['train/rollout_drift'] < 1e-5
    own_way = told['trained'], policy.double(), other.double()
    if name == 'online_dpo':
        assert metrics['train/grad_norm'] == pytest.approx(gradient_of_pairs(*own_way), rel=1e-3)
        _check_pairs(turns, [float(r['finished']) - float(r['weights'].sum()) / 20 for r in generated], metrics)
        return
    advantages, returns = expected_advantages(name, turns, told['costs'])
    joined = torch.cat([response['per_unit']['advantage'] for response in trained])
    assert joined.tolist() == pytest.approx(advantages, abs=2e-3)
    for role, own in returns.items():
        joined = torch.cat([response['per_unit'][f'returns/{role}'] for response in trained])
        assert joined.tolist() == pytest.approx(own, abs=1e-3)
        errors = [
            (value - after) ** 2 for value, after in zip(sum((t.values[role] for t in turns), []), own, strict=True)
        ]
        assert metrics[f'train/{role}/value_loss'] == pytest.approx(sum(errors) / len(errors) / 2, rel=1e-3)
    # The first update is on policy, so what it does shows in the gradient alone: every ratio is 1.
    by_response = torch.tensor(advantages, dtype=torch.float64).split([turn.length for turn in turns])
    assert metrics['train/grad_norm'] == pytest.approx(gradient(name, *own_way, by_response), rel=1e-3)
    if name == 'grpo':
        estimates = [[math.exp(-value) + value - 1 for value in turn.penalties] for turn in turns]
        assert metrics['train/kl'] == pytest.approx(
            sum(sum(own) / len(own) for own in estimates) / len(turns), rel=1e-3
        )
    assert metrics['train/ratio'] == pytest.approx(1.0, abs=1e-4) and metrics['train/clipped_high'] == 0


def _check_pairs(turns: list[Sampled], generated: list[float], metrics: dict[str, float]) -> None:
    """Chosen and rejected are the best and the worst of each prompt; their margin is summed over what was sampled."""
    scores = [[max(own), min(own)] for own in (generated[:4], generated[4:])]
    assert [turn.score for turn in turns] == pytest.approx([score for pair in scores for score in pair])
    margins = [
        3.0 * (sum(chosen.penalties) - sum(rejected.penalties))
        for chosen, rejected in zip(turns[::2], turns[1::2], strict=True)
    ]
    assert max(map(abs, margins)) > 0.1
    losses = [-math.log(1 / (1 + math.exp(-margin))) for margin in margins]
    assert metrics['train/reward_margin'] == pytest.approx(sum(margins) / 2, abs=1e-3)
    assert metrics['train/preference_loss'] == pytest.approx(sum(losses) / 2, abs=1e-3)
