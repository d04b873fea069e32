"""Whole runs of denoisers: any cut, stage and number of ranks train alike, and so does a run that was killed.

What is frozen stays as it was, and what is saved makes the pictures that the run itself makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from align_anything.rollouts.denoising import DenoisingRollouts, DenoisingSampling
from align_anything.trainers.loops.online import OnlineLoop
from tests.harness.pairwise import in_tiers
from tests.models.diffusion.cases import whole_pipeline
from tests.trainers.denoising import PICTURES, SHOWN, metrics, named, offline, online, write_digits
from tests.trainers.runs import die, run, succeed, weights, write_rows

Tiny = Callable[..., Path]
LORA = {'use_lora': True, 'lora_r': 4, 'lora_alpha': 16, 'lora_dropout': 0.0}
# The coefficient of pairs is lower than that of real runs, which makes much of rounding.
PAIRED = {**SHOWN, 'scale_coeff': 10.0}
DATA: dict[str, dict[str, Any]] = {'sft': {'draws_per_sample': 2}, 'dpo': PAIRED, 'kto': PAIRED}
STEPS = 2


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight digits to draw, each beside another one."""
    return write_digits(tmp_path_factory.mktemp('digits'))


@pytest.fixture(scope='module')
def few(rows: Path) -> Path:
    """Five of them: the last step of four leaves one rank without a row."""
    told = [json.loads(line) for line in rows.read_text().splitlines()][:5]
    return write_rows(rows.parent / 'few.jsonl', told)


def told(output: Path) -> torch.Tensor:
    """Loss and norm of the gradient of each step."""
    return torch.tensor([metrics(output, 'train/loss'), metrics(output, 'train/grad_norm')])


def cut(size: int, accumulation: int, stage: int) -> dict[str, Any]:
    return {
        'per_device_train_batch_size': size,
        'gradient_accumulation_steps': accumulation,
        'ds_cfgs': f'ds_z{stage}_config.json',
        # Wide, or Adam would make full steps out of the rounding of gradients that are zero.
        'adam_epsilon': 1e-3,
        'learning_rate': 1e-2,
    }


# Algorithm, responses of a micro-batch, micro-batches, ranks, ZeRO stage, adapter.
CUTS = [
    (name, *way, adapts)
    for name in DATA
    for way in ((2, 2, 1, 0), (1, 2, 2, 0), (2, 1, 2, 2), (2, 1, 2, 3))
    for adapts in (False, True)
]
FIRST = [('dpo', 1, 2, 2, 0, False), ('sft', 2, 1, 2, 3, True), ('sft', 2, 2, 1, 0, False), ('dpo', 2, 1, 2, 3, False)]


@pytest.fixture(scope='module')
def uncut(tiny: Tiny, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], torch.Tensor]:
    """What a run tells that makes each step of one micro-batch, by one process."""
    found: dict[tuple[str, bool], torch.Tensor] = {}

    def of(name: str, adapts: bool) -> torch.Tensor:
        if (name, adapts) not in found:
            out = tmp_path_factory.mktemp('uncut') / 'run'
            how = {**DATA[name], **cut(4, 1, 0), **(LORA if adapts else {})}
            succeed(offline(out, tiny('sd3'), few, **how), 1, PICTURES, algorithm=named(name))
            found[name, adapts] = told(out)
        return found[name, adapts]

    return of


@pytest.mark.parametrize(('name', 'size', 'accumulation', 'ranks', 'stage', 'adapts'), in_tiers(CUTS, FIRST))
def test_every_cut_of_a_step_trains_alike(
    name: str,
    size: int,
    accumulation: int,
    ranks: int,
    stage: int,
    adapts: bool,
    uncut: Callable[[str, bool], torch.Tensor],
    tiny: Tiny,
    few: Path,
    tmp_path: Path,
) -> None:
    how = {**DATA[name], **cut(size, accumulation, stage), **(LORA if adapts else {})}
    succeed(offline(tmp_path / 'run', tiny('sd3'), few, **how), ranks, PICTURES, algorithm=named(name))
    expected = uncut(name, adapts)
    assert expected.shape == (2, 2) and bool((expected[1] > 0).all())
    torch.testing.assert_close(told(tmp_path / 'run'), expected, rtol=2e-4, atol=1e-5)


ONLINE: Mapping[str, dict[str, Any]] = {
    'grpo': {'guidance_scale': 2.0, 'sde_window': 1},
    'online_dpo': {},
}
STAGES = [(name, stage, adapts) for name in ONLINE for stage in (2, 3) for adapts in (False, True)]


@pytest.fixture(scope='module')
def unpartitioned(
    tiny: Tiny, few: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], torch.Tensor]:
    """What a run of two ranks tells that partitions nothing; in its last rollout a rank has no prompt."""
    found: dict[tuple[str, bool], torch.Tensor] = {}

    def of(name: str, adapts: bool) -> torch.Tensor:
        if (name, adapts) not in found:
            out = tmp_path_factory.mktemp('unpartitioned') / 'run'
            succeed(of_two_ranks(out, tiny, few, name, 0, adapts), 2, PICTURES, algorithm=named(name))
            found[name, adapts] = told(out)
        return found[name, adapts]

    return of


def of_two_ranks(out: Path, tiny: Tiny, few: Path, name: str, stage: int, adapts: bool) -> list[str]:
    how = {**ONLINE[name], 'max_steps': None, **(LORA if adapts else {})}
    how |= {'per_device_prompt_batch_size': 2, **cut(4, 1, stage)}
    return online(out, tiny('sd3'), few, **how)


@pytest.mark.parametrize(('name', 'stage', 'adapts'), in_tiers(STAGES, [('grpo', 3, False), ('online_dpo', 2, True)]))
def test_partitioned_denoisers_learn_alike_from_their_own_pictures(
    name: str,
    stage: int,
    adapts: bool,
    unpartitioned: Callable[[str, bool], torch.Tensor],
    tiny: Tiny,
    few: Path,
    tmp_path: Path,
) -> None:
    argv = of_two_ranks(tmp_path / 'run', tiny, few, name, stage, adapts)
    succeed(argv, 2, PICTURES, algorithm=named(name))
    expected = unpartitioned(name, adapts)
    assert expected.shape == (2, 2) and float(expected[1, 0]) > 0
    torch.testing.assert_close(told(tmp_path / 'run'), expected, rtol=1e-3, atol=1e-5)


def killed_in(part: str) -> Callable[[int], None]:
    """Ends a process in its third step: while it generates, or before it updates."""

    def before(rank: int) -> None:
        from align_anything.trainers.loops.offline import OfflineLoop

        def watched(loop: type, name: str, step: int) -> None:
            inner = getattr(loop, name)

            def watch(self: Any, *given: Any) -> Any:
                if self.progress.step == step:
                    die()
                return inner(self, *given)

            setattr(loop, name, watch)

        if part == 'rollout':
            decoded = DenoisingRollouts._response

            def response(self: Any, *given: Any) -> Any:
                if self.version == 2:
                    die()
                return decoded(self, *given)

            DenoisingRollouts._response = response
        else:
            watched(OnlineLoop, '_update', 2)
            watched(OfflineLoop, '_step', 3)

    return before


KILLS = [(name, part) for name in ('sft', 'grpo', 'online_dpo') for part in ('rollout', 'update')]
KILLS.remove(('sft', 'rollout'))


def killable(name: str, out: Path, tiny: Tiny, rows: Path, *more: str) -> list[str]:
    how: dict[str, Any] = {'save_interval': 1, 'save_total_limit': 2, 'max_steps': 4}
    if name == 'grpo':
        how |= {'sde_window': 1, 'num_workers': 1, 'ema_decay': 0.9}
    return (offline if name == 'sft' else online)(out, tiny('sd3'), rows, *more, **how)


@pytest.fixture(scope='module')
def whole(tiny: Tiny, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of an algorithm that nothing interrupted."""
    found: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in found:
            out = tmp_path_factory.mktemp('whole') / 'run'
            succeed(killable(name, out, tiny, rows), 1, PICTURES, algorithm=named(name))
            found[name] = out
        return found[name]

    return of


@pytest.mark.parametrize(('name', 'part'), in_tiers(KILLS, [('grpo', 'rollout'), ('grpo', 'update')]))
def test_a_killed_run_goes_on_as_if_nothing_was(
    name: str, part: str, whole: Callable[[str], Path], tiny: Tiny, rows: Path, tmp_path: Path
) -> None:
    (ended,) = run(killable(name, tmp_path, tiny, rows), 1, PICTURES, killed_in(part), named(name))
    assert ended.code is None
    again = succeed(killable(name, tmp_path, tiny, rows, '--resume', 'auto'), 1, PICTURES, algorithm=named(name))
    assert 'resumed from' in again and 'latents: 0 entries made' in again
    folders = whole(name), tmp_path
    expected, found = (weights(folder / 'slice_end' / 'transformer') for folder in folders)
    assert expected and [key for key in expected if not torch.equal(expected[key], found[key])] == []
    told_whole, told_cut = ((folder / 'metrics.jsonl').read_text() for folder in folders)
    assert told_whole == told_cut


def keeps_a_picture(file: Path) -> Callable[[int], None]:
    """Writes what the run's own sampler makes of its last weights, and the prompt."""

    def before(rank: int) -> None:
        step = OnlineLoop._step

        def watched(self: Any, loaded: Any) -> Any:
            asked = loaded.batches[0].examples[0]
            going_on = step(self, loaded)
            sampling = DenoisingSampling(seed=5, steps=3)
            ((response,),) = self.rollouts.generate([asked], sampling)
            response.parts[0]['image'].save(file)
            file.with_suffix('.txt').write_text(self.spec.decode(asked.prompt)[0]['text'])
            return going_on

        OnlineLoop._step = watched

    return before


@pytest.mark.parametrize('adapts', [False, True])
def test_what_is_saved_makes_the_pictures_of_the_run(adapts: bool, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    out, file = tmp_path / 'run', tmp_path / 'own.png'
    how = {'learning_rate': 1e-2, 'beta': 0.0, **(LORA if adapts else {})}
    succeed(online(out, tiny('sd3'), rows, **how), 1, PICTURES, keeps_a_picture(file), named('grpo'))
    saved = out / 'slice_end'
    prompt = file.with_suffix('.txt').read_text()

    def picture(pipeline: Any) -> numpy.ndarray:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            made = pipeline(prompt=prompt, num_inference_steps=3, guidance_scale=1.0, generator=generator).images[0]
        return numpy.asarray(made, dtype=numpy.int64)

    pipeline = whole_pipeline(tiny('sd3') if adapts else saved)
    before = picture(whole_pipeline(tiny('sd3')))
    if adapts:
        pipeline.load_lora_weights(str(saved))
    own = numpy.asarray(Image.open(file), dtype=numpy.int64)
    assert numpy.abs(picture(pipeline) - own).max() <= 1 < numpy.abs(own - before).max()
    if adapts:
        return
    for name in ('vae', 'text_encoder', 'text_encoder_2', 'text_encoder_3', 'tokenizer', 'scheduler'):
        for source in (path for path in (tiny('sd3') / name).rglob('*') if path.is_file()):
            assert (saved / source.relative_to(tiny('sd3'))).read_bytes() == source.read_bytes()
