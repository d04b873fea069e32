"""Diffusion and flow models: supervised, from pairs, and from the steps of their own pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench import ours, peer_denoise, pipelines
from scripts.bench.compare import Found, Side, in_turn, measured, speed
from scripts.bench.measure import in_child, preload
from scripts.bench.online import update
from scripts.bench.report import Ratio, say
from scripts.bench.work import Size, photograph, prompts, write_rows

PAIR = 'text_to_image'
SHARED = {'num_workers': 0, 'overwrite_output_dir': True}
ADAPTERS = {'use_lora': True, 'r': 16, 'lora_alpha': 16, 'lora_dropout': 0}
SFT = {'train_template': 'Instruction', 'train_template_kwargs': '{answers: image}'}
PAIRS = {'train_template': 'Preference', 'train_template_kwargs': '{answers: image}'}
SCALE = 100.0
GENERATIONS = 4
TINY_PICTURE, TINY_STEPS = 64, 8
WINDOWS: Mapping[str, Mapping[str, Any]] = {'window': {'sde_window': 2}, 'all steps': {}}


def denoise(folder: Path, size: Size) -> list[Ratio]:
    """Supervised: Stable Diffusion 1.5 in full, Stable Diffusion 3 in full and with adapters."""
    found = []
    for family, settings in (('sd15', {}), ('sd3', {}), ('sd3', ADAPTERS)):
        what = f'{family} LoRA' if settings else family
        place = folder / what.replace(' ', '_')
        sides, prepared = _against_plain(place, size, family, 'sft', {**SFT, **settings})
        found += _ratios(what, sides, prepared)
    return found


def denoise_tiny(folder: Path, size: Size) -> list[Ratio]:
    """Supervised, of models that take next to no time: all else that a step does is what counts."""
    size = replace(size, picture=TINY_PICTURE, pictures=4 * size.pictures, steps=TINY_STEPS * size.steps)
    found = []
    for family in pipelines.FAMILIES:
        sides, prepared = _against_plain(folder / family, size, family, 'sft', SFT, pipelines.tiny)
        found += _ratios(f'tiny {family}', sides, prepared)
    return found


def denoise_dpo(folder: Path, size: Size) -> list[Ratio]:
    """From pairs, with adapters: against a policy and a reference that is a model of its own."""
    found = []
    for family in pipelines.FAMILIES:
        settings = {**PAIRS, **ADAPTERS, 'scale_coeff': SCALE}
        sides, _ = _against_plain(folder / family, size, family, 'dpo', settings)
        found.append(speed(f'{family} DPO', sides, 'ours', 'plain', 1.8))
    return found


def denoise_grpo(folder: Path, size: Size) -> list[Ratio]:
    """The update of GRPO on given steps: on a window of two, and on all but the last, which has no noise."""
    model = pipelines.pipeline('sd3', folder / 'sd3', size)
    data = write_rows(folder / 'rows.jsonl', [{'prompt': text} for text in prompts(1)])
    given = GivenSteps(model, size.picture, [float(number % 3) for number in range(GENERATIONS)])
    preload('deepspeed', 'diffusers', 'align_anything.trainers.runs.online')
    argvs = {
        name: ours.settings(
            model,
            data,
            folder / name.replace(' ', '_'),
            train_template='Prompts',
            resolution=size.picture,
            rollout_steps=size.rollout_steps,
            num_generations=GENERATIONS,
            per_device_prompt_batch_size=1,
            per_device_train_batch_size=1,
            **{'gradient_accumulation_steps': GENERATIONS, 'beta': 0, 'rollout_correction_cap': 'null'},
            reward_functions='[jpeg_size]',
            max_steps=size.steps + 1,
            **{**SHARED, **ADAPTERS, **window},
        )
        for name, window in WINDOWS.items()
    }
    sides: dict[str, Callable[[], Found]] = {
        name: lambda argv=argv: in_child(update, PAIR, argv, given) for name, argv in argvs.items()
    }
    done = in_turn(sides, size.rounds, GENERATIONS * size.steps, same_gradient=False)
    _say_memory('sd3 GRPO', done, model)
    return [speed('sd3 GRPO update', done, 'window', 'all steps', 4.0)]


@dataclass(frozen=True)
class GivenSteps:
    """A rollout engine and a reward in one: responses whose trained steps are noise, and their scores."""

    model: Path
    side: int
    scores: list[float]

    def generate(self, examples: Any, sampling: Any) -> list[list[Any]]:
        """Returns the responses to each prompt, the sizes and levels of their steps those of real ones."""
        import torch
        from PIL import Image

        from align_anything.core.types import Response
        from align_anything.models.diffusion.checkpoint import load_spec
        from align_anything.models.diffusion.spec import Sizing
        from align_anything.policies.denoising.collator import FIRST_LEVEL, LEVEL, NEXT, NEXT_LEVEL, SAMPLE

        generator = torch.Generator().manual_seed(0)
        spec = load_spec(self.model, Sizing((self.side, self.side)))
        shape = spec.latent_shape(spec.default_size())
        levels = spec.levels(sampling.steps, shape[1:])
        steps = torch.tensor(list(sampling.window.steps(sampling.steps, 0, generator)))
        picture = Image.new('RGB', (self.side, self.side))

        def response() -> Response:
            sample, noise = torch.randn(2, len(steps), *shape, generator=generator)
            media = {
                SAMPLE: sample,
                NEXT: sample + 0.1 * noise,
                LEVEL: levels[steps],
                NEXT_LEVEL: levels[steps + 1],
                FIRST_LEVEL: levels[1].expand(len(steps)),
            }
            return Response(
                ids=steps,
                weights=torch.ones(len(steps)),
                media=media,
                media_counts={spec.kind: 1},
                per_unit={'rollout': torch.zeros(len(steps))},
                parts=[{'type': spec.kind, spec.kind: picture}],
            )

        return [[response() for _ in self.scores] for _ in examples]

    def sync(self, version: int) -> None:
        """Takes no weights."""

    def sleep(self) -> None:
        """Holds no memory."""

    def judge(self, completions: Any) -> list[float]:
        """Returns the scores."""
        return self.scores * (len(completions) // len(self.scores))


def _ratios(what: str, sides: Mapping[str, Side], prepared: Side) -> list[Ratio]:
    return [
        speed(f'{what} SFT', sides, 'ours', 'plain', 3.0),
        speed(f'{what} SFT, one epoch with its preparation', {**sides, 'ours': prepared}, 'ours', 'plain', 1.1),
    ]


def _against_plain(
    folder: Path,
    size: Size,
    family: str,
    algorithm: str,
    settings: Mapping[str, Any],
    build: Callable[[str, Path, Size], Path] = pipelines.pipeline,
) -> tuple[dict[str, Side], Side]:
    """Our run on what was prepared and the plain loop; and our run with the preparation of its rows in its time."""
    folder.mkdir()
    model = build(family, folder / family, size)
    preload('deepspeed', 'diffusers', 'align_anything.trainers.runs.offline')
    say(f'  {in_child(pipelines.costs, model, size.picture)}')
    steps, names = size.steps + 1, ('image',) if algorithm == 'sft' else ('chosen', 'rejected')
    rows = _rows(folder / 'pictures', size, size.pictures * steps, names)
    data, prepared = write_rows(folder / 'rows.jsonl', rows), [folder / f'prepared_{at}' for at in range(size.rounds)]
    argvs = [
        ours.settings(
            model,
            data,
            folder / 'run',
            resolution=size.picture,
            prepared_dir=place,
            per_device_train_batch_size=size.pictures,
            max_steps=steps,
            **{**SHARED, **settings},
        )
        for place in prepared
    ]
    argv = argvs[0]
    draws = in_child(ours.draws, PAIR, argv, algorithm, steps)
    ordered = [rows[row] for row in in_child(ours.order, PAIR, argv, algorithm)]
    # The quickest, as of steps.
    seconds, memory = min(in_child(ours.preparation, PAIR, own, algorithm) for own in argvs)
    say(f'  preparation: {seconds / len(rows):.2f} CPU s a row, {memory / 2**20:.0f} MiB')
    loop = peer_denoise.Loop(
        family,
        model,
        size.picture,
        size.pictures,
        seed=42,
        rank=ADAPTERS['r'] if settings.get('use_lora') else None,
        beta=2 * SCALE if algorithm == 'dpo' else None,
    )
    sides: dict[str, Callable[[], Found]] = {
        'ours': lambda: in_child(measured, PAIR, argv, algorithm),
        'plain': lambda: in_child(peer_denoise.train, loop, ordered, draws),
    }
    done = in_turn(sides, size.rounds, size.pictures * size.steps)
    _say_memory(f'{family} {algorithm}', done, model)
    with_preparation = 1 / (1 / done['ours'].rate + seconds / len(rows))
    told = ', '.join(
        f'{epochs} {1 / done["plain"].rate / (1 / done["ours"].rate + seconds / len(rows) / epochs):.2f}'
        for epochs in (1, 2, 4, 8)
    )
    say(f'  ours / plain by the number of epochs, their preparation included: {told}')
    return done, replace(done['ours'], rate=with_preparation, memory=max(memory, done['ours'].memory))


def _rows(folder: Path, size: Size, count: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Prompts with a photograph for each of `names`."""
    folder.mkdir()
    rows: list[dict[str, Any]] = [{'prompt': text} for text in prompts(count)]
    for number, row in enumerate(rows):
        for at, name in enumerate(names):
            row[name] = str(folder / f'{number}_{name}.jpg')
            photograph(Path(row[name]), size.photo, len(names) * number + at)
    return rows


def _say_memory(what: str, sides: Mapping[str, Side], model: Path) -> None:
    own = pipelines.weights(model)
    told = ', '.join(f'{name} {(side.memory - own) / 2**20:.0f}' for name, side in sides.items())
    say(f'  {what}: MiB at the peak above the denoiser ({own / 2**20:.0f}): {told}')
