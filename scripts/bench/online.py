"""Learning from generated responses: the update of GRPO on groups that share a prompt and an image, and a full step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench import ours, ours_online, peer
from scripts.bench.compare import FROZEN_TOWER, TOWER, Found, Side, in_turn, speed
from scripts.bench.measure import StepClock, in_child, peak, preload, reset_peak, resident
from scripts.bench.ours_online import Given
from scripts.bench.report import Ratio, say
from scripts.bench.work import PairLengths, Size, given_responses, image_model, image_pairs, write_rows

GENERATIONS = 8
PAIR = 'text_image_to_text'
LAYOUTS = ('shared_prefix', 'padded')
TRAINED_TOWER = {'freeze_vision_tower': False}


def grpo(folder: Path, size: Size) -> list[Ratio]:
    """The update of a LLaVA-type model, with the tower frozen and trained: our two layouts, and the peer."""
    model, rows = _work(folder, size)
    data = write_rows(folder / 'rows.jsonl', rows)
    ids = given_responses(model, size, GENERATIONS)
    given = Given(ids, [float(number % 3) for number in range(GENERATIONS)])
    preload('deepspeed', 'align_anything.trainers.runs.online', *peer.MODULES)
    found = []
    for what, settings, frozen in (('frozen', FROZEN_TOWER, TOWER), ('trained', TRAINED_TOWER, ())):
        argvs = {
            layout: argv_of(model, data, folder / what / layout, size, layout=layout, beta=0, **settings)
            for layout in LAYOUTS
        }
        sides: dict[str, Callable[[], Found]] = {
            layout: lambda argv=argv: in_child(update, 'text_image_to_text', argv, given)
            for layout, argv in argvs.items()
        }
        sides['trl'] = lambda frozen=frozen: in_child(_peer, model, rows, given, size.steps + 1, frozen)
        done = in_turn(sides, size.rounds, size.groups * GENERATIONS * size.steps)
        name = f'GRPO update, tower {what}'
        found += [speed(name, done, 'shared_prefix', other, 3.0) for other in ('padded', 'trl')]
        found.append(_memory(name, done, model))
    return found


def online(folder: Path, size: Size) -> list[Ratio]:
    """Where the CPU seconds of a step go, without a target: GRPO, its reference asked, judged by a reward model."""
    model, rows = _work(folder, size)
    data = write_rows(folder / 'rows.jsonl', rows)
    preload('deepspeed', 'align_anything.trainers.runs.online')
    judge = in_child(_with_head, model, folder / 'judge')
    argv = argv_of(model, data, folder / 'run', size, reward_model_name_or_path=judge, **FROZEN_TOWER)
    clock, phases = in_child(ours_online.train, PAIR, argv, 'grpo')
    total = sum(clock.seconds)
    spent = {name: sum(step[name] for step in phases[1:]) for name in phases[0]}
    spent['the rest'] = total - sum(spent.values())
    shares = ', '.join(f'{name} {seconds / total:.1%}' for name, seconds in spent.items())
    say(f'  {total / len(clock.seconds):.2f} CPU s a step: {shares}')
    return []


def _work(folder: Path, size: Size) -> tuple[Path, list[dict[str, Any]]]:
    """The checkpoint, and the prompts of one step."""
    model = image_model(folder / 'model', size)
    lengths = PairLengths(size.group_prompt, size.group_response, size.group_response)
    return model, image_pairs(model, folder / 'photos', size, lengths, size.groups)


def argv_of(model: Path, data: Path, output: Path, size: Size, **more: Any) -> list[str]:
    """The command line of a run that learns from the responses to the prompts of one step."""
    values = {
        'train_template': 'Preference',
        'num_generations': GENERATIONS,
        'per_device_prompt_batch_size': size.groups,
        'per_device_train_batch_size': size.groups * GENERATIONS,
        'max_new_tokens': size.group_response,
        'max_steps': size.steps + 1,
        'rollout_correction_cap': 'null',
        'reward_functions': '[format]',
        'overwrite_output_dir': True,
        **more,
    }
    return ours.settings(model, data, output, **values)


def update(pair: str, argv: list[str], given: Given) -> Found:
    """The clock of the updates of a run of GRPO on given responses, and the memory that it took."""
    reset_peak()
    before = resident()
    steps, phases = ours_online.train(pair, argv, 'grpo', given)
    clock = StepClock(losses=steps.losses, norms=steps.norms)
    for step in phases:
        clock.spend(step['update'])
    return clock, peak() - before, None


def _peer(*args: Any) -> Found:
    reset_peak()
    before = resident()
    clock = peer.update(*args)
    return clock, peak() - before, None


def _with_head(model: Path, folder: Path) -> Path:
    from align_anything.models.pretrained_model import load_pretrained_models

    judge, _, processor = load_pretrained_models(model, is_reward_model=True)
    judge.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _memory(what: str, sides: dict[str, Side], model: Path) -> Ratio:
    weights = sum(file.stat().st_size for file in model.glob('*.safetensors'))
    mine, theirs = (sides[name].memory - weights for name in ('shared_prefix', 'trl'))
    detail = f'{mine / 2**20:.0f} against {theirs / 2**20:.0f} MiB above the model'
    return Ratio(f'{what}: memory of shared_prefix / trl', mine / theirs, 0.6, at_most=True, detail=detail)
