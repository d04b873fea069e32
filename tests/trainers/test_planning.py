"""Plans: what fits and what does not, the arithmetic by hand, and what others published."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from align_anything.algorithms.base import known_algorithms
from align_anything.cli.main import main
from align_anything.core.errors import SettingsError
from align_anything.core.flops import ACCELERATORS, Accelerator
from align_anything.trainers.runs.planning import Asked, kept_bytes, plan

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
SMALL = LlamaConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
PEERS: dict[str, tuple[Any, int, int, bool, float, float]] = {
    'Llama 3 8B, LoRA': (LLAMA_8B, 1, 4096, True, 402e12, 12500),
    'Qwen2.5 7B, LoRA': (QWEN25_7B, 1, 4096, True, 423e12, 14100),
    'Qwen3 4B, SFT, 16k': (QWEN3_4B, 8, 16384, False, 0.284 * 989.4e12, 53100),
    'Qwen3 4B, RL, 65k': (QWEN3_4B, 8, 65536, False, 0.361 * 989.4e12, 29500),
}


@pytest.mark.parametrize(
    'name', [*[*PEERS][::2], *(pytest.param(name, marks=pytest.mark.extended) for name in [*PEERS][1::2])]
)
def test_the_docs_hold_what_is_planned_beside_what_others_published(name: str) -> None:
    config, gpus, length, lora, speed, tokens = PEERS[name]
    asked = Asked(gpus, 80.0, ACCELERATORS['H100'], prompt=0, response=length, rows=8 * gpus, use_lora=lora)
    found = plan(config, KNOWN['sft'](), asked)
    each, published = found.flops.model / found.tokens, gpus * speed / tokens
    assert each == pytest.approx(published, rel=0.16)
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
    assert found.flops.again == 4 * forward and found.tokens == 40
    numbers = matrices + 2 * 1000 * 64 + 5 * 64
    assert found.weights == found.trained == numbers
    plain, second, third, _ = found.choices
    assert plain.rows == 2 and plain.micro_batches == 1
    assert plain.computing == pytest.approx(16 * forward / 2 / 0.25e12)
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


def test_towers_count_where_prompts_have_pictures(tiny: Callable[..., Path]) -> None:
    from align_anything.models.checkpoint import read_config

    config = read_config(tiny('qwen2_5_vl'))
    asked = Asked(1, 80.0, ACCELERATORS['A100'], image_size=56)
    without, with_one = (plan(config, KNOWN['dpo'](), replace(asked, images=number)) for number in (0, 1))
    # Four patches of 14 pixels each way, four of which are a token.
    assert with_one.tokens - without.tokens == 64 * 4
    assert with_one.flops.forward > without.flops.forward


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
