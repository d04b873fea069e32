"""The router loss of a mixture of experts is that of each token of the step once, for any cut and any layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from align_anything.algorithms.sft import SFT
from align_anything.configs.schema import LoraCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.types import Example
from align_anything.engines.balance import Balanced, global_shares
from align_anything.engines.step import StepResult, combined, divided
from align_anything.models.adapter import bare_model
from align_anything.models.architecture import skeleton
from align_anything.models.lora import apply_lora
from align_anything.models.pretrained_model import load_model
from align_anything.models.router import Routers, router_coefficient
from align_anything.models.structure import components
from align_anything.models.trainable import enable_gradient_checkpointing
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import LAYOUTS
from align_anything.policies.token.plan import fit_attention
from align_anything.policies.token.policy import TokenPolicy
from tests.harness.every_class import small_config
from tests.harness.local_engine import LocalEngine
from tests.invariants.families import accumulate_gradients, double_experts, load_plain, rows
from tests.invariants.runs import assembled, fork, settings, train, zero_file
from tests.models.mixed import MEDIA

Stirred = Callable[[str], Path]
FAMILY = 'qwen3_moe'
COEFFICIENT = 0.3


def reference_loss(folder: Path, model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """The loss and the share of each expert, token by token in float64, from the plain class alone."""
    _, singles, groups = rows(folder)
    experts, top = model.config.num_experts, model.config.num_experts_per_tok
    probabilities: list[Tensor] = []
    chosen = torch.zeros(experts, dtype=torch.float64)
    for row in (*singles, *groups):
        for number, inputs in enumerate(row.sequences):
            # A prompt is counted with its first response only.
            start = len(row.example.prompt) if number else 0
            for layer in model(**inputs, use_cache=False, output_router_logits=True).router_logits:
                for token in layer[start:].double():
                    exponents = (token - token.max()).exp()
                    probabilities.append(exponents / exponents.sum())
                    for expert in sorted(range(experts), key=lambda index: -token[index].item())[:top]:
                        chosen[expert] += 1
    shares = chosen / len(probabilities)
    means = torch.stack(probabilities).mean(0)
    return experts * sum(shares[expert] * means[expert] for expert in range(experts)), shares / top


@cache
def reference(folder: Path) -> tuple[float, float, Tensor, dict[str, Tensor | None]]:
    """Both losses, the shares, and the gradient of their weighted sum."""
    model = load_plain(folder).eval()
    _, singles, groups = rows(folder)
    loss = accumulate_gradients(model, [*singles, *groups])
    router, shares = reference_loss(folder, model)
    (COEFFICIENT * router).backward()
    return loss, float(router), shares, {name: parameter.grad for name, parameter in model.named_parameters()}


@cache
def policy(folder: Path, layout: str) -> TokenPolicy:
    spec, *_ = rows(folder)
    model = double_experts(load_model(folder, spec.components, dtype=torch.float64)).eval()
    collate = TokenCollator(spec, layout)
    fit_attention(model, collate)
    return TokenPolicy(model, collate, dtype=torch.float64)


def cuts(examples: list[Example]) -> list[list[list[Example]]]:
    """The step in one micro-batch, in four, and in one for each Example with an empty one among them."""
    return [[examples], [examples[:1], examples[1:4], examples[4:5], examples[5:]], [[], *([one] for one in examples)]]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_loss_and_gradients_are_those_of_a_plain_loop_for_every_cut(layout: str, stirred: Stirred) -> None:
    folder = stirred(FAMILY)
    _, singles, groups = rows(folder)
    loss, router, shares, expected = reference(folder)
    module = policy(folder, layout)
    local = LocalEngine(module, torch.optim.SGD(module.parameters(), lr=0.0))
    for cut in cuts([row.example for row in (*singles, *groups)]):
        batches = [module.collate(part) for part in cut]
        found = global_shares(batches, partial(module, routing=True), lambda tensor: tensor)
        result = local.train_step(batches, Balanced(SFT(), COEFFICIENT, found))
        assert result.terms['loss'] == pytest.approx(loss, rel=1e-6)
        assert result.terms['router_loss'] == pytest.approx(router, rel=1e-6)
        assert result.loss == pytest.approx(loss + COEFFICIENT * router, rel=1e-6)
        loads = torch.tensor([result.terms[f'expert_load/{expert}'] for expert in range(len(shares))])
        torch.testing.assert_close(loads.double(), shares, atol=1e-6, rtol=0)
        for name, parameter in module.model.named_parameters():
            wanted = expected[name]
            if wanted is not None:
                torch.testing.assert_close(
                    parameter.grad, wanted, atol=1e-8, rtol=1e-5, msg=partial('{}: {}'.format, name)
                )


def test_the_loss_is_transformers_own_where_a_step_is_one_sequence(stirred: Stirred) -> None:
    folder = stirred(FAMILY)
    model = load_plain(folder).eval()
    _, singles, _ = rows(folder)
    inputs = singles[2].sequences[0]
    logits = model(**inputs, use_cache=False, output_router_logits=True).router_logits
    expected = load_balancing_loss_func(logits, model.config.num_experts, model.config.num_experts_per_tok)
    module = policy(folder, 'padded')
    batch = module.collate([singles[2].example])
    shares = global_shares([batch], partial(module, routing=True), lambda tensor: tensor)
    found = Balanced(SFT(), 1.0, shares).terms(batch, module(batch, routing=True), {})['router_loss']
    assert float(found / batch.stats['distinct_tokens']) == pytest.approx(float(expected), rel=1e-5)


def test_recomputing_activations_changes_no_gradient(stirred: Stirred) -> None:
    folder = stirred(FAMILY)
    _, singles, groups = rows(folder)
    *_, expected = reference(folder)
    spec, *_ = rows(folder)
    model = double_experts(load_model(folder, spec.components, dtype=torch.float64))
    enable_gradient_checkpointing(model)
    model.train()
    module = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float64)
    batches = [module.collate([row.example]) for row in (*singles, *groups)]
    shares = global_shares(batches, partial(module, routing=True), lambda tensor: tensor)
    local = LocalEngine(module, torch.optim.SGD(module.parameters(), lr=0.0))
    local.train_step(batches, Balanced(SFT(), COEFFICIENT, shares))
    for name, parameter in model.named_parameters():
        if expected[name] is not None:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_padding_dummies_and_repeated_prompts_do_not_count(layout: str, stirred: Stirred) -> None:
    spec, _, groups = rows(stirred('qwen3_omni_moe_thinker'))
    examples = [row.example for row in groups]
    wanted = sum(len(example.prompt) + sum(map(len, example.responses)) for example in examples)
    for dummies in ((), MEDIA['qwen3_omni_moe_thinker']):
        collate = TokenCollator(spec, layout, dummy_kinds=dummies)
        texts = [example for example in examples if not example.prompt.media] or examples
        assert collate(examples).stats['distinct_tokens'] == wanted
        assert collate(texts).stats['distinct_tokens'] == sum(map(len, texts))
        assert collate([]).stats['distinct_tokens'] == 0


def _run(rank: int, folder: Path, zero: Path, ranks: int, changes: dict[str, Any]) -> list[float]:
    run = assembled(settings(folder, FAMILY, zero, **changes), FAMILY)
    return train(run, folder, rank, ranks)


def test_a_run_has_the_checkpoints_own_weight_or_the_one_that_is_set(stirred: Stirred, tmp_path: Path) -> None:
    folder = stirred(FAMILY)
    rows(folder)
    off = fork(_run, 1, folder, zero_file(tmp_path, 0), 1, {'router_aux_loss_coef': 0})[0]
    own = fork(_run, 1, folder, zero_file(tmp_path, 0), 1, {'router_aux_loss_coef': None})[0]
    large = fork(_run, 1, folder, zero_file(tmp_path, 0), 1, {'router_aux_loss_coef': COEFFICIENT})[0]
    # Qwen3-MoE's own weight is 0.001; before the first update the router loss is the same.
    assert (large[0] - off[0]) / (own[0] - off[0]) == pytest.approx(COEFFICIENT / 0.001, rel=0.01)
    # On two ranks, partitioned, the same.
    parted = fork(_run, 2, folder, zero_file(tmp_path, 3), 2, {'router_aux_loss_coef': COEFFICIENT})
    assert parted[0] == pytest.approx(large, rel=1e-4)


def test_asking_a_model_without_experts_for_it_is_an_error(stirred: Stirred, tmp_path: Path) -> None:
    dense = skeleton(small_config('llama'))
    assert router_coefficient(dense, None) == router_coefficient(dense, 0.0) == 0.0
    with pytest.raises(SettingsError, match="models of type 'llama' have no router loss"):
        router_coefficient(dense, 0.01)


@pytest.mark.parametrize(
    'model_type', ['mixtral', 'qwen2_moe', 'qwen3_moe', 'olmoe', 'phimoe', 'granitemoe', 'gpt_oss']
)
def test_every_kind_of_router_is_found(model_type: str) -> None:
    model = skeleton(small_config(model_type))
    assert router_coefficient(model, None) == model.config.router_aux_loss_coef > 0


def test_the_steps_of_a_rollout_are_told_together_also_where_one_of_them_is_empty() -> None:
    """A step without anything to train on never asks for the router loss, so it has no count of it."""
    weighed = {'policy_loss': 1.0, 'router_loss': COEFFICIENT}
    steps = [
        divided({'policy_loss': 6.0, 'router_loss': 20.0}, {'policy_loss': 3.0, 'router_loss': 10.0}, weighed),
        StepResult({}, None, {'policy_loss': 0.0}, applied=False),
        divided({'policy_loss': 1.0, 'router_loss': 40.0}, {'policy_loss': 1.0, 'router_loss': 10.0}, weighed),
    ]
    for ordered in (steps, [steps[1], steps[0], steps[2]]):
        told = combined(ordered)
        assert told.terms == {'policy_loss': 7 / 4, 'router_loss': 3.0}
        assert told.loss == pytest.approx(7 / 4 + COEFFICIENT * 3.0), 'what the steps lowered'
    assert combined([steps[1]]).numbers == {} and combined([steps[1]]).empty


@pytest.mark.parametrize('model_type', ['jamba', 'qwen3_moe'])
def test_a_router_under_an_adapter_is_one_router(model_type: str) -> None:
    """Jamba's are linear layers, as those inside of an adapter are."""
    torch.manual_seed(0)
    config = small_config(model_type)
    model = AutoModelForCausalLM.from_config(config)
    plain = len(Routers(model).found)
    adapted = apply_lora(model, LoraCfgs(use_lora=True, r=8), components(config))
    for name, parameter in adapted.named_parameters():
        if 'lora_B' in name:
            torch.nn.init.normal_(parameter)
    routers = Routers(bare_model(adapted))
    assert len(routers.found) == plain > 0
    adapts = any('router' in name for name, _ in adapted.named_parameters() if 'lora_A' in name)
    assert adapts == (model_type == 'jamba')
    said: list[Tensor] = []
    for module, index in routers.found:
        of_module = partial(lambda index, *given: said.append(given[2] if adapts else given[2][index]), index)
        module.register_forward_hook(of_module)
    with routers.recorded() as logits:
        adapted(input_ids=torch.arange(8)[None], use_cache=False)
    assert len(logits) == plain
    for one, other in zip(logits, said, strict=True):
        torch.testing.assert_close(one, other.flatten(0, -2), atol=0, rtol=0)
