"""Plans: what fits and what does not, the arithmetic by hand, and what others published."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.main import main
from align_anything.core.errors import SettingsError
from align_anything.core.flops import ACCELERATORS, Accelerator
from align_anything.models import structure
from align_anything.models.activations import activations_of
from align_anything.models.checkpointing import ALL_LAYERS
from align_anything.models.pretrained_model import load_spec
from align_anything.trainers.runs.planning.rollouts import kept_bytes
from align_anything.trainers.runs.planning.search import Plan, choices_of, plan_tokens, would_fit
from align_anything.trainers.runs.planning.subject import GIB, Asked, Settings
from align_anything.trainers.runs.planning.tokens import Architecture, Media, media_of, token_subject

KNOWN = known_algorithms()
DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'planning.md'
LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip
QWEN25_7B = Qwen2Config(
    vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, tie_word_embeddings=False,
)  # fmt: skip
QWEN3_4B = Qwen3Config(
    vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
)  # fmt: skip
QWEN3_600M = Qwen3Config(
    vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
)  # fmt: skip
QWEN3_30B = Qwen3MoeConfig(
    vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=48,
    num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
)  # fmt: skip
QWEN25_32B = Qwen2Config(
    vocab_size=152064, hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40,
    num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip
LLAMA_70B = LlamaConfig(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
    num_key_value_heads=8,
)  # fmt: skip
SMALL = LlamaConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
PEERS: dict[str, tuple[Any, int, int, bool, float, float]] = {
    'Llama 3 8B, LoRA': (LLAMA_8B, 1, 4096, True, 402e12, 12500),
    'Qwen2.5 7B, LoRA': (QWEN25_7B, 1, 4096, True, 423e12, 14100),
    'Qwen2.5 32B, LoRA': (QWEN25_32B, 8, 4096, True, 301e12, 8 * 2250),
    'Llama 3 70B, LoRA': (LLAMA_70B, 8, 4096, True, 316e12, 8 * 1092),
    'Llama 3 70B, rows of 8k shared by 2': (LLAMA_70B, 64, 8192, False, 389e12, 64 * 867),
    'Qwen3 30B-A3B': (QWEN3_30B, 8, 4096, False, 277e12, 8 * 12040),
    'Qwen3 0.6B, SFT, 16k': (QWEN3_600M, 1, 16384, False, 0.237 * 989.4e12, 25490),
    'Qwen3 4B, SFT, 16k': (QWEN3_4B, 8, 16384, False, 0.284 * 989.4e12, 53100),
    'Qwen3 4B, RL, 65k': (QWEN3_4B, 8, 65536, False, 0.361 * 989.4e12, 29500),
    'Qwen3 4B, RL, LoRA, 65k': (QWEN3_4B, 8, 65536, True, 0.375 * 989.4e12, 33430),
}
FIRST = 'Qwen3 4B, SFT, 16k'
"""The one that shows it in the first tier."""


def plan(config: Any, algorithm: Any, asked: Asked) -> Plan:
    return plan_tokens(Architecture.of(config), algorithm, asked)


@pytest.mark.parametrize(
    'name', [FIRST, *(pytest.param(name, marks=pytest.mark.extended) for name in PEERS if name != FIRST)]
)
def test_the_docs_hold_what_is_planned_beside_what_others_published(name: str) -> None:
    config, gpus, length, lora, speed, tokens = PEERS[name]
    asked = Asked(gpus, 80.0, ACCELERATORS['H100'], prompt=0, response=length, rows=8 * gpus, use_lora=lora)
    found = plan(config, KNOWN['sft'](), asked)
    each, published = found.flops.model / found.units, gpus * speed / tokens
    assert each == pytest.approx(published, rel=0.17)
    row = next(line for line in DOCS.read_text().splitlines() if f'| {name} |' in line)
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    figures = f'{published / 1e9:.1f}', f'{each / 1e9:.1f}', f'{gpus * speed / each:,.0f}'
    assert (f'{speed / 1e12:.0f}', f'{tokens:,}', *figures) == tuple(cells[3:])


def test_the_arithmetic_by_hand() -> None:
    """A device of 1 TFLOP/s, 1 GB/s of memory and of links."""
    asked = Asked(2, 1.0, Accelerator(1.0, 1.0, 1.0), prompt=6, response=4, rows=4, efficiency=0.25)
    found = plan(SMALL, KNOWN['sft'](), asked)
    # By layer: queries and what is behind attention, keys and values of two heads of four, three of the MLP.
    matrices = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    attention = 2 * 2 * 2 * 64 * (10 * 11 / 2)
    forward = 2 * matrices * 10 + attention + 2 * 1000 * 64 * 4
    assert found.flops.forward == 4 * forward and found.flops.backward == 8 * forward
    head = 2 * 1000 * 64 * 4
    # Nothing has to be computed again but the products of the head.
    assert found.flops.again == 4 * head and found.units == 40 and found.unit == 'tokens'
    numbers = matrices + 2 * 1000 * 64 + 5 * 64
    assert found.weights == found.trained == numbers
    plain, second, third, _ = found.choices
    assert plain.rows == 2 and plain.micro_batches == 1
    assert plain.computing == pytest.approx((12 * forward + 4 * head) / 2 / 0.25e12) and plain.waiting == 0
    assert plain.settings.given == {'gradient_checkpointing': False}
    assert plain.communicating == pytest.approx(2 * 2 * numbers / 2 / 1e9)
    assert second.communicating == pytest.approx(2 * 2 * numbers / 2 / 1e9)
    assert third.communicating == pytest.approx(3 * 2 * numbers / 2 / 1e9)
    assert plain.memory['policy'].weights == 2 * numbers and third.memory['policy'].weights == numbers
    assert found.best is plain and found.seconds == plain.seconds


def test_rollouts_by_hand() -> None:
    asked = Asked(4, 1.0, Accelerator(1e6, 1.0, 1e6), prompt=6, response=4, rows=8, generations=2)
    algorithm = KNOWN['grpo'](beta=0.0)
    found = plan(SMALL, algorithm, asked)
    own = found.rollouts
    assert own.parallel == 1 and kept_bytes(SMALL) == 2 * 2 * 2 * 2 * 16
    # Four responses a device, at once; each token reads the weights and what was kept of four times eight tokens.
    read = 2 * found.weights + 4 * kept_bytes(SMALL) * 8
    assert own.shared == pytest.approx(4 * read / 0.7e9, rel=1e-3)
    assert found.seconds == pytest.approx(own.shared + found.best.seconds)
    # Prompts count once for both responses; the policy that sampled is scored too.
    supervised = plan(SMALL, KNOWN['sft'](), replace(asked, rows=16))
    assert supervised.flops.forward < found.flops.forward < 2 * supervised.flops.forward
    referred = plan(SMALL, KNOWN['grpo'](beta=0.1), asked)
    assert referred.flops.forward == pytest.approx(1.5 * found.flops.forward)
    assert referred.choices[0].memory.keys() == {'policy', 'reference'}
    critical = plan(SMALL, KNOWN['ppo'](), asked)
    assert 'reward critic' in critical.choices[0].memory and critical.flops.backward > 1.5 * found.flops.backward


def test_what_does_not_fit_is_told() -> None:
    large = Asked(8, 80.0, ACCELERATORS['H100'], rows=64)
    files = [choice.file for choice in plan(LLAMA_8B, KNOWN['sft'](), large).choices if choice.fits]
    assert files == ['ds_z2_config.json', 'ds_z3_config.json', 'ds_z3_offload_config.json']
    alone = plan(LLAMA_8B, KNOWN['sft'](), replace(large, gpus=1))
    assert [choice.fits for choice in alone.choices] == [False, False, False, True]
    tiny = plan(LLAMA_8B, KNOWN['sft'](), replace(large, gpus=1, gpu_memory=4.0))
    assert tiny.best is None and tiny.seconds is None
    with pytest.raises(SettingsError, match='rm_score trains nothing'):
        plan(SMALL, KNOWN['rm_score'](), large)


@pytest.mark.extended
def test_less_memory_takes_what_costs_more_and_never_less_time() -> None:
    """Of one long row on two devices, whose links and memories are slow."""
    asked = Asked(2, 1.0, Accelerator(1.0, 1.0, 1.0), prompt=1, response=4095, rows=2)
    config = LlamaConfig(**{**SMALL.to_dict(), 'num_hidden_layers': 8})
    subject = token_subject(Architecture.of(config), KNOWN['sft'](), asked, Media())
    seen: list[dict[str, object]] = []
    seconds = []
    for share in (0.3 * 0.95**power for power in range(120)):
        choices = list(choices_of(subject, KNOWN['sft'](), replace(asked, gpu_memory=share)))
        third = choices[2]
        if not third.fits:
            break
        assert sum(own.total for own in third.memory.values()) <= 0.9 * share * GIB
        seconds.append(third.seconds)
        seen += [third.settings.given] if third.settings.given not in seen else []
    first = {name: number for number, given in reversed([*enumerate(seen)]) for name in given}
    # Of what is computed again less, then all of it; 8 bits; ranks that share the row; host memory; tiles.
    order = ['gradient_checkpointing', 'gradient_checkpointing_every_n_layers', 'optimizer', 'sequence_parallel_size',
             'activation_offloading']  # fmt: skip
    assert [name for name in sorted(first, key=first.get) if name in order] == order and subject.tiles, seen
    assert {} in seen and seconds == pytest.approx(sorted(seconds), rel=1e-3)


def test_ranks_that_share_a_row_send_each_other_what_attention_reads() -> None:
    asked = Asked(2, 1.0, Accelerator(1.0, 1.0, 1.0), prompt=1, response=4095, rows=2)
    subject = token_subject(Architecture.of(SMALL), KNOWN['sft'](), asked, Media())
    assert subject.sharing == [2]
    alone, together = Settings(None), Settings(None, sequence_parallel=2)
    # Of each token half of four heads of 16 numbers twice, for queries and what they find, and of two for keys and
    # values; in both layers, there and in the backward pass.
    assert subject.exchanged(together) == 4096 * 2 * 2 * (2 * 64 + 2 * 32) / 2 * 2
    assert subject.exchanged(replace(together, recomputes=ALL_LAYERS)) == 1.5 * subject.exchanged(together)
    assert subject.row_kept(together) == subject.row_kept(alone) / 2 and subject.exchanged(alone) == 0
    assert subject.passes(together) == subject.passes(alone), 'there is no tower'
    three = token_subject(Architecture.of(SMALL), KNOWN['sft'](), replace(asked, gpus=3), Media())
    assert three.sharing == []


@pytest.mark.parametrize('family', ['qwen3_vl', 'qwen3_moe'])
def test_rows_are_shared_wherever_runs_share_them(tiny: Callable[..., Path], family: str) -> None:
    """Features between layers, and the router losses of experts, keep no run from it."""
    spec = load_spec(tiny(family), model_max_length=None)
    asked = Asked(2, 1.0, ACCELERATORS['H100'], prompt=1, response=63, rows=2)
    assert token_subject(spec, KNOWN['sft'](), asked, Media()).sharing == [2]


def test_ranks_that_share_a_row_share_its_pictures(tiny: Callable[..., Path]) -> None:
    spec = load_spec(tiny('qwen2_5_vl'), model_max_length=None)
    asked = Asked(2, 1.0, ACCELERATORS['H100'], rows=2, image_size=56)
    alone, together = Settings(None), Settings(None, sequence_parallel=2)
    for images, times in ((2, 1), (3, 4 / 3)):
        media = media_of(spec, replace(asked, images=images))
        assert media.positions(2)['vision_tower'] == round(times * media.positions()['vision_tower'] / 2)
        subject = token_subject(spec, KNOWN['sft'](), asked, media)
        whole = subject.passes(alone)
        without = token_subject(spec, KNOWN['sft'](), asked, replace(media, vision=())).passes(alone)
        # Of three whole ones one rank reads two, and the other waits for it.
        added = subject.passes(together).forward - whole.forward
        assert added == pytest.approx((times - 1) * (whole.forward - without.forward))


def test_what_would_fit_where_nothing_does() -> None:
    asked = Asked(1, 0.003, ACCELERATORS['H100'], response=2048, rows=8)
    planner = partial(plan_tokens, Architecture.of(SMALL), KNOWN['sft']())
    assert planner(asked).best is None
    changes = list(would_fit(planner, asked))
    assert changes and all(change.startswith(('--lora', '--qlora', '--gpus', '--response')) for change in changes)
    for change in changes:
        words = change.split(':')[0].split()
        value = {'use_lora': True} if len(words) == 1 else {words[0].removeprefix('--'): int(words[1])}
        assert planner(replace(asked, **value)).best is not None
    with pytest.raises(SettingsError, match='--ema: runs of denoisers alone'):
        planner(replace(asked, ema=True))


def test_sounds_and_videos_are_what_the_processor_makes_of_them(tiny: Callable[..., Path]) -> None:
    spec = load_spec(tiny('qwen2_audio'), model_max_length=None)
    asked = Asked(1, 80.0, ACCELERATORS['A100'], seconds=2.0)
    heard = media_of(spec, asked)
    # 100 frames a second, of which the encoder makes one position of two, and the projector one token of two of these.
    assert heard.placeholders == 50 and heard.positions() == {'audio_tower': 100, 'vision_tower': 0}
    with pytest.raises(SettingsError, match='read no image'):
        media_of(spec, replace(asked, images=1))
    seen = media_of(
        load_spec(tiny('qwen2_5_vl'), model_max_length=None), replace(asked, seconds=0, frames=4, image_size=56)
    )
    # Two frames at once, each of four by four patches, four of which are a token.
    assert seen.positions() == {'vision_tower': 2 * 16, 'audio_tower': 0} and seen.placeholders == 2 * 4


def test_towers_count_where_prompts_have_pictures(tiny: Callable[..., Path]) -> None:
    spec = load_spec(tiny('qwen2_5_vl'), model_max_length=None)
    asked = Asked(1, 80.0, ACCELERATORS['A100'], image_size=56)
    without, with_one = (
        plan_tokens(spec, KNOWN['dpo'](), asked, media_of(spec, replace(asked, images=number))) for number in (0, 1)
    )
    # Four patches of 14 pixels each way, four of which are a token, between two that mark a picture.
    assert with_one.units - without.units == 64 * (4 + 2)
    assert with_one.flops.forward > without.flops.forward
    row = media_of(spec, replace(asked, images=1)).positions()
    model = structure.skeleton(spec.config)
    text, both = (activations_of(model, spec, 100, 2, ALL_LAYERS, positions=given) for given in ({}, row))
    assert both > text
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(spec.component_of(name) != 'vision_tower')
    assert activations_of(model, spec, 100, 2, ALL_LAYERS, positions=row) == text, 'a frozen tower keeps nothing'


def test_the_command_prints_settings(tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r'```bash\nalign-anything (.*?)\n```', DOCS.read_text())
    given = block.replace('Qwen/Qwen2.5-7B-Instruct', str(tiny('qwen2'))).split()
    with pytest.raises(SystemExit) as ended:
        main(given)
    said = ' '.join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    # 64 prompts with 8 responses each, on 8 devices.
    assert 'Take --ds_cfgs ds_z0_config.json --per_device_train_batch_size 64 --gradient_accumulation_steps 1' in said
    assert 'Generation: ' in said and 'A step: about ' in said
    with pytest.raises(SystemExit) as ended:
        main([*given, '--device', 'abacus'])
    assert ended.value.code == 2
