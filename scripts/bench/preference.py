"""Learning from pairs: DPO and reward models against the peer, a cached reference, and what sharing prompts saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scripts.bench.compare import FROZEN_TOWER, Side, Task, measure, speed
from scripts.bench.report import Ratio
from scripts.bench.work import PairLengths, Size, image_model, image_pairs, text_model, text_pairs

PAIRS = {'train_template': 'Preference'}
RATIOS = (1, 4, 16)


def dpo(folder: Path, size: Size) -> list[Ratio]:
    """Qwen2-type text DPO, prompts twice the mean response: against the peer, and with a cached reference."""
    model = text_model(folder / 'model', size)
    rows = text_pairs(model, size, PairLengths.of(size.text_pair, 2), size.pairs * (size.steps + 1))
    runs = {'ours': {}, 'cached': {'reference_cache_dir': folder / 'scores'}}
    sides = measure(folder, size, Task('dpo', 'text_to_text', model, rows, size.pairs, PAIRS), runs)
    return [speed('text DPO', sides, 'ours', 'trl', 1.6), speed('text DPO', sides, 'cached', 'ours', 1.3)]


def dpo_image(folder: Path, size: Size) -> list[Ratio]:
    """LLaVA-type DPO with one image a pair and a frozen tower: prompts as long as a response, and three times."""
    model = image_model(folder / 'model', size)
    found = []
    for ratio, limit in ((3, 2.2), (1, 1.6)):
        lengths = PairLengths.of(size.image_pair, ratio)
        rows = image_pairs(model, folder / 'photos', size, lengths, size.pairs * (size.steps + 1))
        task = Task('dpo', 'text_image_to_text', model, rows, size.pairs, {**PAIRS, **FROZEN_TOWER})
        place = folder / str(ratio)
        place.mkdir()
        what = f'image DPO {ratio}:1'
        runs = {'ours': {}, **({'cached': {'reference_cache_dir': place / 'scores'}} if ratio == 3 else {})}
        sides = measure(place, size, task, runs)
        found.append(speed(what, sides, 'ours', 'trl', limit))
        if ratio == 3:
            found += [_memory(what, sides, model), speed(what, sides, 'cached', 'ours', 1.3)]
    return found


def rm(folder: Path, size: Size) -> list[Ratio]:
    """A Qwen2-type reward model on the rows of `dpo`, without the term that keeps scores small, which TRL lacks."""
    model = text_model(folder / 'model', size)
    rows = text_pairs(model, size, PairLengths.of(size.text_pair, 2), size.pairs * (size.steps + 1))
    task = Task('rm', 'text_to_text', model, rows, size.pairs, {**PAIRS, 'regularization': 0})
    return [speed('text RM', measure(folder, size, task, {'ours': {}}), 'ours', 'trl', 1.6)]


def shared(folder: Path, size: Size) -> list[Ratio]:
    """Text DPO on shared prompts over our own padded rows, without any padding, by length of prompt to response.

    The target of each ratio is four fifths of what the number of tokens promises.
    """
    model = text_model(folder / 'model', size)
    found = []
    for ratio in RATIOS:
        lengths = PairLengths.of(size.image_pair, ratio, spread=0)
        rows = text_pairs(model, size, lengths, size.pairs * (size.steps + 1))
        place = folder / str(ratio)
        place.mkdir()
        runs = {name: {'layout': name} for name in ('shared_prefix', 'padded')}
        task = Task('dpo', 'text_to_text', model, rows, size.pairs, PAIRS)
        sides = measure(place, size, task, runs, against_peer=False)
        promised = 2 * (ratio + 1) / (ratio + 2)
        found.append(speed(f'DPO {ratio}:1, tokens {promised:.2f}', sides, *runs, 0.8 * promised))
    return found


def _memory(what: str, sides: Mapping[str, Side], model: Path) -> Ratio:
    """Peak memory above the weights of the policy and its reference, each as large as the checkpoint."""
    weights = 2 * sum(file.stat().st_size for file in model.glob('*.safetensors'))
    mine, theirs = (sides[name].memory - weights for name in ('ours', 'trl'))
    detail = f'{mine / 2**20:.0f} against {theirs / 2**20:.0f} MiB above the models'
    return Ratio(f'{what}: memory of ours / trl', mine / theirs, 0.6, at_most=True, detail=detail)
