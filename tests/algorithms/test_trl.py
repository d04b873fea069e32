"""The preference losses are those of TRL's own trainers, on the same weights and the same unequal rows, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.cpo import CPO
from align_anything.algorithms.dpo import DPO
from align_anything.algorithms.kto import KTO
from align_anything.algorithms.orpo import ORPO
from align_anything.algorithms.rm import RM
from align_anything.algorithms.simpo import SimPO
from align_anything.core.types import Batch, Example, Scored
from align_anything.engines.step import global_estimates, with_roles
from align_anything.losses.dpo import DPO_LOSSES
from align_anything.models.any_model import add_score_head
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.policies.stub import TextFamily, example, piece, plain_policy

pytest.importorskip('trl')

# Prompt, chosen, rejected, and the response of another row.
ROWS = (
    ((11, 12, 13), (21, 22, 23, 24), (31,), (41, 42)),
    ((14,), (25,), (32, 33, 34, 35, 36), (43,)),
    ((15, 16, 17, 18, 19), (26, 27), (37, 38), (44, 45, 46, 47, 48)),
    ((12, 14), (28, 29, 21), (39, 31, 32, 33), (49, 41, 42)),
)
BETA = 0.3
EXACT = {'rel': 2e-6, 'abs': 1e-6}
# TRL keeps log-probabilities in float32 where it gathers them.
SINGLE = {'rel': 1e-5, 'abs': 1e-6}


@pytest.fixture(scope='module')
def folder(tiny: Callable[..., Path]) -> Path:
    return tiny('llama')


@pytest.fixture(scope='module')
def models(folder: Path) -> tuple[nn.Module, nn.Module]:
    """A policy and the reference that it has moved away from."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval() for _ in range(2))
    moved(policy)
    return policy, reference


def moved(model: nn.Module) -> nn.Module:
    """Adds noise to the weights, the same each time."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def trainer_of(
    folder: Path, out: Path, kind: Any, config: Any, columns: dict[str, Any], *given: Any, **more: Any
) -> Any:
    """A trainer of TRL's on one row, which is never read."""
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    options = {'bf16': False, 'gradient_checkpointing': False, 'report_to': [], 'use_cpu': True}
    args = config(output_dir=str(out), **options)
    rows = Dataset.from_dict({name: [value] for name, value in columns.items()})
    return kind(*given, args=args, train_dataset=rows, processing_class=tokenizer, **more)


PAIR = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}


def pairs() -> list[Example]:
    return [
        example(piece(*prompt), piece(*chosen, weight=1.0), piece(*rejected, weight=1.0))
        for prompt, chosen, rejected, _ in ROWS
    ]


PADDED = TokenCollator(TextFamily(), 'padded')


def collated(examples: list[Example]) -> Batch:
    return PADDED(examples)


def policy_of(model: nn.Module) -> TokenPolicy:
    return plain_policy(model, torch.float64)


def means(
    algorithm: Algorithm, batch: Batch, scored: Scored, estimates: dict[str, float] | None = None
) -> dict[str, float]:
    """Each term of the algorithm as the engines divide it."""
    counts = algorithm.counts(batch)
    terms = algorithm.terms(batch, scored, estimates or {})
    return {name: float(terms[name]) / float(counts[name]) for name in terms}


def objective(algorithm: Algorithm, found: dict[str, float]) -> float:
    return sum(weight * found[name] for name, weight in algorithm.coefficients().items())


@pytest.fixture(scope='module')
def scored(models: tuple[nn.Module, nn.Module]) -> tuple[Batch, Scored]:
    batch = collated(pairs())
    with torch.no_grad():
        policy, reference = map(policy_of, models)
        return batch, with_roles(policy, {'reference': reference})(batch)


@pytest.fixture(scope='module')
def dpo_trainer(folder: Path, models: tuple[nn.Module, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Any:
    from trl import DPOConfig, DPOTrainer

    policy, reference = models
    trainer = trainer_of(
        folder, tmp_path_factory.mktemp('dpo'), DPOTrainer, DPOConfig, PAIR, policy, ref_model=reference
    )
    policy.eval()
    trainer.beta = BETA
    return trainer


def trl_pairs() -> list[dict[str, list[int]]]:
    return [
        {'prompt_ids': list(prompt), 'chosen_ids': list(chosen), 'rejected_ids': list(rejected)}
        for prompt, chosen, rejected, _ in ROWS
    ]


def dpo_loss_of_trl(trainer: Any, losses: dict[str, float], smoothing: float) -> float:
    trainer.loss_types, trainer.loss_weights = list(losses), list(losses.values())
    trainer.label_smoothing = smoothing
    with torch.no_grad():
        return float(trainer._compute_loss(trainer.model, trainer.data_collator(trl_pairs()), return_outputs=False))


@pytest.mark.parametrize('name', DPO_LOSSES)
def test_each_dpo_loss(name: str, dpo_trainer: Any, scored: tuple[Batch, Scored]) -> None:
    # TRL's own sigmoid losses know no label smoothing.
    smoothing = 0.1 if name in ('robust', 'exo_pair') else 0.0
    found = means(DPO(scale_coeff=BETA, loss_type=name, label_smoothing=smoothing), *scored)
    assert found['preference_loss'] == pytest.approx(dpo_loss_of_trl(dpo_trainer, {name: 1.0}, smoothing), **EXACT)
    metrics = dpo_trainer._metrics['eval']
    names = {'accuracies': 'reward_accuracy', 'margins': 'reward_margin', 'chosen': 'chosen_reward'}
    assert {ours: metrics[f'rewards/{theirs}'][-1] for theirs, ours in names.items()} == pytest.approx(
        {ours: found[ours] for ours in names.values()}, **SINGLE
    )


def test_several_dpo_losses_with_weights_and_the_likelihood(dpo_trainer: Any, scored: tuple[Batch, Scored]) -> None:
    algorithm = DPO(scale_coeff=BETA, loss_type=['sigmoid', 'bco_pair'], loss_weights=[0.8, 0.2], sft_coeff=0.5)
    theirs = dpo_loss_of_trl(dpo_trainer, {'sigmoid': 0.8, 'bco_pair': 0.2, 'sft': 0.5}, 0.0)
    assert objective(algorithm, means(algorithm, *scored)) == pytest.approx(theirs, **EXACT)


def test_every_loss_of_trl_is_here_or_left_out_knowingly() -> None:
    from trl.trainer import dpo_trainer as module

    source = Path(module.__file__).read_text()
    theirs = {line.split('"')[1] for line in source.splitlines() if 'if loss_type == "' in line}
    assert theirs - {'sft', 'aot', 'aot_unpaired'} == set(DPO_LOSSES)


def test_kto_with_the_divergence_of_the_step(folder: Path, models: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    policy, reference = models
    columns = {'prompt': 'a', 'completion': 'b', 'label': True}
    trainer = trainer_of(folder, tmp_path, KTOTrainer, KTOConfig, columns, policy, ref_model=reference)
    policy.eval()
    trainer.beta, trainer.desirable_weight, trainer.undesirable_weight = BETA, 1.3, 0.7
    labels = (True, False, False, True)
    algorithm = KTO(scale_coeff=BETA, scale_better=1.3, scale_worse=0.7)
    score = with_roles(policy_of(policy), {'reference': policy_of(reference)})

    estimated = []
    # With the one response of another row, and with the other: an estimate below zero counts as zero.
    for column in (2, 3):
        examples, rows = [], []
        for row, label in zip(ROWS, labels, strict=True):
            prompt, chosen, other = row[0], row[1], row[column]
            item = example(piece(*prompt), piece(*chosen, weight=1.0))
            item.unmatched, item.meta = piece(*other, weight=1.0), {'desirable': [label]}
            examples.append(item)
            rows.append(
                {'prompt_ids': [*prompt], 'completion_ids': [*chosen], 'KL_completion_ids': [*other], 'label': label}
            )
        batch = collated(examples)
        estimates = global_estimates([batch], algorithm, score=score, reduce_sum=lambda tensor: tensor)
        with torch.no_grad():
            found = means(algorithm, batch, score(batch), estimates)
            theirs = float(trainer._compute_loss(policy, trainer.data_collator(rows), return_outputs=False))
        assert found['preference_loss'] == pytest.approx(theirs, **EXACT)
        metrics = trainer._metrics['eval']
        assert found['kl'] == pytest.approx(metrics['kl'][-1], **SINGLE)
        assert found['desirable_reward'] == pytest.approx(metrics['rewards/chosen'][-1], **SINGLE)
        assert found['undesirable_reward'] == pytest.approx(metrics['rewards/rejected'][-1], **SINGLE)
        estimated.append(estimates['kl'])
    assert min(estimated) < 0 < max(estimated)


@pytest.mark.parametrize('margin', [False, True])
def test_the_reward_model(margin: bool, folder: Path, reward_trainer: Any) -> None:
    trainer, theirs = reward_trainer
    body = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    body.model.load_state_dict(theirs.model.state_dict())
    policy = ScorePolicy(add_score_head(body, theirs.score.weight.detach()).eval(), PADDED, dtype=torch.float64)
    examples, rows = pairs(), []
    for number, (row, (prompt, chosen, rejected, _)) in enumerate(zip(examples, ROWS, strict=True)):
        row.meta = {'margin': 0.25 * number} if margin else {}
        rows.append({'chosen_ids': [*prompt, *chosen], 'rejected_ids': [*prompt, *rejected], **row.meta})
    batch = collated(examples)
    with torch.no_grad():
        values = policy(batch).values
        loss = float(trainer.compute_loss(theirs, trainer.data_collator(rows)))
    found = means(RM(), batch, Scored(values))
    assert found['preference_loss'] == pytest.approx(loss, **EXACT)
    assert found['reward_accuracy'] == pytest.approx(trainer._metrics['eval']['accuracy'][-1])
    assert found['reward_margin'] == pytest.approx(trainer._metrics['eval']['margin'][-1], **SINGLE)


@pytest.fixture(scope='module')
def reward_trainer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, nn.Module]:
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float64)
    columns = {'chosen': 'a b', 'rejected': 'a c'}
    trainer = trainer_of(folder, tmp_path_factory.mktemp('rm'), RewardTrainer, RewardConfig, columns, moved(model))
    # Where it pools a row is found by the padding, which token 0 is here as in the rows of the collator.
    model.config.pad_token_id = trainer.data_collator.pad_token_id = TextFamily.pad_token_id
    return trainer, model.eval()


def concatenated(tokens: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], side: str) -> dict[str, torch.Tensor]:
    from torch.nn.utils.rnn import pad_sequence

    def padded(values: list[list[int]], fill: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(value) for value in values], batch_first=True, padding_value=fill)

    return {
        f'{side}_input_ids': padded([[*prompt, *answer] for prompt, answer in tokens], 0),
        f'{side}_attention_mask': padded([[1] * len(prompt + answer) for prompt, answer in tokens], 0),
        f'{side}_labels': padded([[-100] * len(prompt) + [*answer] for prompt, answer in tokens], -100),
    }


def concatenated_pairs() -> dict[str, torch.Tensor]:
    chosen = concatenated(tuple((prompt, answer) for prompt, answer, _, _ in ROWS), 'chosen')
    return chosen | concatenated(tuple((prompt, answer) for prompt, _, answer, _ in ROWS), 'rejected')


def test_cpo_and_simpo(
    folder: Path, models: tuple[nn.Module, nn.Module], scored: tuple[Batch, Scored], tmp_path: Path
) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    policy, _ = models
    trainer = trainer_of(folder, tmp_path, CPOTrainer, CPOConfig, PAIR, policy)
    policy.eval()
    for algorithm, settings in (
        (CPO(scale_coeff=BETA, sft_coeff=0.7), {'loss_type': 'sigmoid', 'beta': BETA, 'cpo_alpha': 0.7}),
        (CPO(scale_coeff=BETA, sft_coeff=0, label_smoothing=0.2), {'label_smoothing': 0.2, 'cpo_alpha': 0.0}),
        (
            SimPO(scale_coeff=2.0, gamma=1.2),
            {'loss_type': 'simpo', 'beta': 2.0, 'simpo_gamma': 1.2, 'label_smoothing': 0.0},
        ),
        (SimPO(scale_coeff=2.0, gamma=1.2, sft_coeff=0.4), {'cpo_alpha': 0.4}),
    ):
        for name, value in settings.items():
            setattr(trainer, name, value)
        with torch.no_grad():
            theirs, metrics = trainer.get_batch_loss_metrics(policy, concatenated_pairs())
        found = means(algorithm, *scored)
        assert objective(algorithm, found) == pytest.approx(float(theirs), **EXACT)
        assert found['reward_margin'] == pytest.approx(metrics['rewards/margins'], **SINGLE)


def test_the_odds_of_orpo(models: tuple[nn.Module, nn.Module], scored: tuple[Batch, Scored]) -> None:
    """TRL's likelihood is that of the prompt too, so only the other term is compared."""
    from trl.experimental.orpo import ORPOTrainer

    policy, _ = models
    device = SimpleNamespace(device=torch.device('cpu'))
    trainer = SimpleNamespace(
        beta=BETA, accelerator=device, is_encoder_decoder=False, padding_value=0, aux_loss_enabled=False,
        concatenated_inputs=ORPOTrainer.concatenated_inputs, get_batch_logps=ORPOTrainer.get_batch_logps,
    )  # fmt: skip
    with torch.no_grad():
        chosen, rejected, *_ = ORPOTrainer.concatenated_forward(trainer, policy, concatenated_pairs())
        losses, rewards, *_ = ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)
    algorithm = ORPO(scale_coeff=BETA, sft_coeff=0)
    found = means(algorithm, *scored)
    # Theirs are subtracted from the likelihood.
    assert objective(algorithm, found) == pytest.approx(-float(losses.mean()), **SINGLE)
    assert found['chosen_reward'] == pytest.approx(float(rewards.mean()), **SINGLE)
