"""Whole runs of DiffusionNFT: the old policy samples, follows, and is resumed, as the average of the weights is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align_anything.algorithms.nft import NFT
from align_anything.rollouts.denoising import DenoisingRollouts
from align_anything.trainers.loops.online import OnlineLoop
from align_anything.trainers.pairs import PAIRS
from tests.harness.pairwise import first_of
from tests.trainers.denoising import PICTURES, metrics, online, write_digits
from tests.trainers.runs import TEXT, die, run, sft, succeed, text_rows, weights, write_rows

Tiny = Callable[..., Path]
DECAY, EMA = 0.25, 0.9
SHOWN = {'preview_prompts': '[a zero, a one, a two]', 'preview_every': 1, 'preview_steps': 2, 'ema_decay': EMA}
SAVES = {'save_interval': 1, 'save_total_limit': 3}
LORA = {'use_lora': True, 'r': 4, 'lora_alpha': 8}
KINDS: dict[str, dict[str, Any]] = {
    'lora_z3': {'ds_cfgs': 'ds_z3_config.json', **LORA},
    'z2': {'ds_cfgs': 'ds_z2_config.json'},
}


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits to draw."""
    return write_digits(tmp_path_factory.mktemp('digits'), 16)


def nft(output: Path, model: Path, rows: Path, **settings: Any) -> list[str]:
    return online(output, model, rows, **{'old_decay_rate': DECAY, 'learning_rate': 1e-2, **SAVES, **settings})


def keeping_what_generates(folder: Path) -> Callable[[int], None]:
    """Keeps the weights of the denoiser each time that it generates, under the number of the call."""

    def before(rank: int) -> None:
        inner, calls = DenoisingRollouts.generate, []

        def generate(self, examples, sampling, tell=None):
            calls.append(sampling)
            state = {name: tensor.clone() for name, tensor in self.denoiser.state_dict().items()}
            save_file(state, folder / f'{len(calls)}.safetensors')
            return inner(self, examples, sampling)

        DenoisingRollouts.generate = generate

    return before


def test_the_old_policy_samples_and_the_average_is_shown_and_saved(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / 'run', {**SHOWN, 'preview_prompts': '[a zero]'}
    argv = nft(out, tiny('sd3'), rows, **settings)
    succeed(argv, 1, PICTURES, keeping_what_generates(tmp_path), NFT)
    start, first = weights(tiny('sd3') / 'transformer'), weights(out / 'slice_1' / 'transformer')
    assert any(not torch.equal(start[name], first[name]) for name in start)

    def between(share: float) -> dict[str, torch.Tensor]:
        return {name: share * start[name] + (1 - share) * first[name] for name in start}

    assert start.keys() == first.keys()
    stored = load_file(out / 'slice_1' / 'state' / 'old.safetensors')
    wanted = {'old': between(DECAY), 'ema': between(0.1)}
    # Preview and rollout, a step, preview and rollout.
    calls = [load_file(tmp_path / f'{number}.safetensors') for number in range(1, 5)]
    for found, expected in (
        (calls[0], start), (calls[1], start), (calls[2], wanted['ema']), (calls[3], wanted['old']),
        (stored, wanted['old']), (weights(out / 'slice_1' / 'ema' / 'transformer'), wanted['ema']),
    ):  # fmt: skip
        for name in stored:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7, msg=name)
    drift = metrics(out, 'train/drift')
    assert drift[0] == 0 < drift[1] and metrics(out, 'train/distance')[0] == 0


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def dies_in_step(step: int) -> Callable[[int], None]:
    """Rank 1 is killed while it trains on a rollout."""

    def before(rank: int) -> None:
        inner = OnlineLoop._updated

        def updated(self, *given):
            if rank == 1 and self.progress.step + 1 == step:
                die()
            return inner(self, *given)

        OnlineLoop._updated = updated

    return before


@pytest.mark.parametrize('kind', first_of(KINDS, 'lora_z3'))
def test_a_killed_run_goes_on_as_if_it_had_not_been(kind: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    settings = {**SHOWN, **KINDS[kind], 'max_steps': 3, 'per_device_prompt_batch_size': 1}
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    succeed(nft(whole, tiny('sd3'), rows, **settings), 2, PICTURES, algorithm=NFT)
    ended = run(nft(killed, tiny('sd3'), rows, **settings), 2, PICTURES, dies_in_step(3), NFT)
    assert ended[1].code is None and not (killed / 'slice_end').exists()
    succeed([*nft(killed, tiny('sd3'), rows, **settings), '--resume', 'auto'], 2, PICTURES, algorithm=NFT)
    for folder in (
        ('slice_end', 'slice_end/ema') if kind == 'lora_z3' else ('slice_end/transformer', 'slice_end/ema/transformer')
    ):
        one, other = weights(whole / folder), weights(killed / folder)
        assert one and one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert (killed / 'metrics.jsonl').read_text() == (whole / 'metrics.jsonl').read_text()
    assert files(killed / 'previews') == files(whole / 'previews')
    assert (killed / 'previews.html').read_text() == (whole / 'previews.html').read_text()


def test_a_dry_run_counts_both_averages(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    settings = {'dry_run': True, 'ema_decay': EMA, 'reference_coeff': 0.0}
    told = succeed(nft(tmp_path / 'run', tiny('sd3'), rows, **settings), 1, PICTURES, algorithm=NFT)
    assert 'average (old)' in told and 'average (ema)' in told and 'reference' not in told.split('Memory')[1]


def test_models_that_do_not_denoise_a_flow_are_refused(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    (ended,) = run(nft(tmp_path / 'ddpm', tiny('sd15'), rows), 1, PICTURES, algorithm=NFT)
    assert ended.code == 2 and 'DiffusionNFT trains flows, and StableDiffusionPipeline is none' in ended.output
    text = write_rows(tmp_path / 'rows.jsonl', text_rows(4))
    argv = sft(tmp_path / 'text', tiny('qwen2'), text, reward_functions='[exact_match]', max_new_tokens=4)
    (ended,) = run(argv, 1, TEXT, algorithm=NFT)
    assert ended.code == 2 and "nft of models of type 'qwen2'" in ended.output and 'choose grpo' in ended.output


@pytest.mark.extended
@pytest.mark.parametrize(
    ('pair', 'family', 'grid'), [('text_to_video', 'ltx', 'grid.gif'), ('text_to_audio', 'ace_step', 'grid.png')]
)
def test_clips_and_sounds_are_learned_from_and_shown(
    pair: str, family: str, grid: str, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / 'rewards.py').write_text(
        'def dark(completions):\n    return [float(n % 2) for n, _ in enumerate(completions)]\n'
    )
    texts = [{'messages': [{'role': 'user', 'content': text}]} for text in ('a tone', 'a wave', 'a storm', 'a song')]
    rows, out = write_rows(tmp_path / 'rows.jsonl', texts), tmp_path / 'run'
    more = {'train_template_kwargs': '{}', 'preview_prompts': '[a tone, a wave]', 'preview_steps': 2}
    more |= {'num_frames': 9, 'resolution': 64} if pair == 'text_to_video' else {}
    argv = nft(out, tiny(family), rows, max_steps=2, **more)
    succeed(argv, 1, PAIRS[pair], algorithm=NFT)
    assert (out / 'previews' / '00000000' / grid).is_file() and metrics(out, 'train/drift')[0] == 0
