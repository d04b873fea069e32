"""What the models of a run take, counted from the models themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.cli.leaves import find_run
from align_anything.core.errors import ModelError
from align_anything.core.types import Example, Piece
from align_anything.models.activations import activations_of
from align_anything.models.any_model import AnyModel, AnyModelForScore
from align_anything.models.checkpointing import Checkpointing
from align_anything.models.pretrained_model import load_spec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.trainers.launch import settings_of
from align_anything.trainers.runs.assembly import build_on_meta
from align_anything.trainers.runs.memory import Memory, estimate_memory, memory_of_run
from align_anything.trainers.runs.settings import spec_of
from tests.trainers.test_scoring import with_head

Tiny = Callable[..., Path]


@pytest.fixture(scope='module')
def judge(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('judge')
    with_head(tiny('llama'), folder)
    return folder


def held(
    algorithm: str, model: Path, pair: str = 'text_to_text', samples: int = 0, **settings: Any
) -> dict[str, Memory]:
    values = {
        'model_name_or_path': model,
        'train_datasets': 'rows',
        'train_template': 'Instruction',
        'output_dir': 'out',
        'ds_cfgs': 'ds_z0_config.json',
        **settings,
    }
    argv = [part for key, value in values.items() for part in (f'--{key}', str(value))]
    its_pair, kind = find_run(pair, algorithm)
    resolved = settings_of(its_pair, kind, argv, {})
    spec = spec_of(resolved.cfgs)
    policy, _ = build_on_meta(resolved.cfgs, spec, resolved.algorithm)
    return memory_of_run(resolved.cfgs, its_pair, resolved.algorithm, spec, policy, size=samples)


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def trained(model: torch.nn.Module, width: int, states: int) -> Memory:
    moved = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Memory(float(size(model) * width), float(moved * width), float(moved * states))


def test_every_model_of_safe_rlhf_is_counted(tiny: Tiny, judge: Path) -> None:
    policy = AnyModel.from_pretrained(tiny('qwen2'))
    critic = AnyModelForScore.from_pretrained(tiny('qwen2'))
    critic.lm_head.requires_grad_(False)  # nothing reads it, and nothing trains it
    frozen = Memory(2.0 * size(AnyModelForScore.from_pretrained(judge)))
    models = {'reward_model_name_or_path': judge, 'cost_model_name_or_path': judge}
    # bfloat16; the optimizer has a float32 copy and two moments.
    assert held('saferlhf', tiny('qwen2'), bf16=True, critic_lr_warmup_ratio=0.1, **models) == {
        'policy': trained(policy, 2, 12),
        'reference': Memory(2.0 * size(policy)),
        'reward critic': trained(critic, 2, 12),
        'cost critic': trained(critic, 2, 12),
        'reward model': frozen,
        'cost model': frozen,
    }


def test_a_reference_that_is_no_copy_takes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    reward = {'reward_functions': '[format]', 'bf16': False}
    assert [*held('grpo', tiny('llama'), beta=0.1, **reward)] == ['policy', 'reference']
    assert [*held('grpo', tiny('llama'), beta=0.0, **reward)] == ['policy']
    assert [*held('grpo', tiny('llama'), beta=0.1, use_lora=True, **reward)] == ['policy']
    assert [*held('dpo', tiny('llama'))] == ['policy', 'reference']
    assert [*held('dpo', tiny('llama'), reference_cache_dir=tmp_path)] == ['policy']
    assert [*held('sft', tiny('llama'))] == ['policy']


def test_a_reference_has_a_precision_and_a_model_of_its_own_and_shares_what_is_frozen(tiny: Tiny) -> None:
    model = AnyModel.from_pretrained(tiny('llava'))
    tower = size(model.model.vision_tower)
    images = {'pair': 'text_image_to_text', 'bf16': False, 'freeze_vision_tower': True, 'freeze_mm_proj': False}
    both = held('dpo', tiny('llava'), **images)
    assert both['policy'].weights == 4 * size(model) and both['policy'].gradients == 4 * (size(model) - tower)
    assert both['reference'] == Memory(4.0 * (size(model) - tower))
    assert held('dpo', tiny('llava'), reference_dtype='bf16', **images)['reference'] == Memory(2.0 * size(model))
    other = held('dpo', tiny('llama'), reference_model_name_or_path=tiny('qwen2'), bf16=False)
    assert other['reference'] == Memory(4.0 * size(AnyModel.from_pretrained(tiny('qwen2'))))


def test_quantised_weights_take_their_few_bits_and_their_scales(tiny: Tiny) -> None:
    lora = {'bf16': True, 'use_lora': True}
    model = AnyModel.from_pretrained(tiny('llama'))
    layers = sum(module.weight.numel() for module in model.model.modules() if isinstance(module, torch.nn.Linear))
    rows = sum(module.out_features for module in model.model.modules() if isinstance(module, torch.nn.Linear))
    whole = held('sft', tiny('llama'), **lora)['policy']
    quantised = {
        bits: held('sft', tiny('llama'), use_bnb=True, load_in_4bit=bits != 8, load_in_8bit=bits == 8, **lora, **more)
        for bits, more in ((4, {}), (5, {'bnb_4bit_use_double_quant': False}), (8, {}))
    }
    spared = {bits: whole.weights - own['policy'].weights for bits, own in quantised.items()}
    assert spared[4] == pytest.approx(layers * (2 - 0.5 - (1 + 4 / 256) / 64))
    assert spared[5] == pytest.approx(layers * (2 - 0.5 - 4 / 64))
    assert spared[8] == layers * (2 - 1) - 4 * rows
    assert all(replace(own['policy'], weights=whole.weights) == whole for own in quantised.values())


def test_an_average_in_host_memory_takes_nothing_of_the_device(tiny: Tiny) -> None:
    settings = {'pair': 'text_to_image', 'samples': 1, 'train_template': 'Messages', 'ema_decay': 0.9}
    on_device, aside = (held('sft', tiny('sd3'), ema_on_cpu=aside, **settings) for aside in (False, True))
    assert on_device['average (ema)'].weights > 0 and aside['average (ema)'] == Memory(0.0)
    assert on_device['policy'] == aside['policy']


def test_judges_and_critics_that_a_run_would_refuse_are_refused(tiny: Tiny, judge: Path) -> None:
    with pytest.raises(ModelError, match='no score head'):
        held('grpo', tiny('qwen2'), reward_model_name_or_path=tiny('llama'))
    with pytest.raises(ModelError, match='does not read the tokens of the policy'):
        held('ppo', tiny('qwen2'), reward_functions='[format]', reward_critic_model_name_or_path=judge)


@pytest.mark.parametrize('family', ['llama', 'gemma3_text', 'opt', 'qwen3_moe', 'llava'])
def test_activations_are_about_what_autograd_keeps(tiny: Tiny, family: str) -> None:
    spec = load_spec(tiny(family), model_max_length=4096)
    model = AnyModel.from_pretrained(tiny(family)).train()
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)
    ids = torch.arange(128) % 50 + 100
    example = Example(Piece(ids[:120], torch.zeros(120)), [Piece(ids[120:], torch.ones(8))])
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scored = policy(policy.collate([example]))
    assert scored.values.requires_grad
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    tokens = policy.collate.size([example])
    assert 0.6 < activations_of(model, spec, tokens, 4, recomputes=None) / measured < 1.8
    layers, width = 2, model.get_input_embeddings().embedding_dim
    whole, inputs = activations_of(model, spec, tokens, 4, recomputes=None), tokens * 4 * width
    assert activations_of(model, spec, tokens, 4, Checkpointing()) == layers * inputs + whole / layers
    assert activations_of(model, spec, tokens, 4, Checkpointing(every=2)) == inputs + whole
    assert activations_of(model, spec, tokens, 4, Checkpointing(offload=True)) == whole / layers


def test_what_does_not_learn_keeps_no_activations(tiny: Tiny) -> None:
    spec = load_spec(tiny('llama'), model_max_length=4096)
    model = AnyModelForScore.from_pretrained(tiny('llama')).requires_grad_(False)
    model.score.requires_grad_(True)
    assert activations_of(model, spec, 100, 4, recomputes=None) == 0


def test_hpz_keeps_a_second_copy_among_the_ranks_of_a_machine() -> None:
    model, zero = torch.nn.Linear(10, 10, bias=False), {'stage': 3}
    plain = estimate_memory(model, {'zero_optimization': zero}, 'bf16', 16)
    second = estimate_memory(model, {'zero_optimization': {**zero, 'zero_hpz_partition_size': 8}}, 'bf16', 16)
    assert plain.weights == 2 * 100 / 16
    assert second == replace(plain, weights=plain.weights + 2 * 100 / 8)
