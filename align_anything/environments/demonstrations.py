"""What an environment shows of how to act in it, written as the rows of a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from align_anything.core.errors import WorldError
from align_anything.core.types import Message
from align_anything.environments.base import Environment, close, make_environment

ROWS, PROMPTS, FRAMES = 'demonstrations.jsonl', 'prompts.jsonl', 'frames'
Demonstrate = Callable[[int], 'tuple[list[Message], dict[str, Any]] | None']
"""Of a seed, an episode in messages and what came of it; None where there is none."""


def write_demonstrations(
    name: str, kwargs: Mapping[str, Any], out: str | Path, episodes: int, first_seed: int = 0, prompts: int = 0
) -> tuple[int, float]:
    """Writes episodes of the environment's own demonstrator into the folder `out`, and prompts of further episodes.

    `demonstrations.jsonl` has an episode a line, `messages` with actions and what came of it, `frames` the pictures in
    them. `prompts.jsonl` has what such an episode begins with and its `seed`, for seeds that no demonstration has.

    Returns:
        How many episodes there are, and how much they cost on average.

    Raises WorldError for an environment that has no demonstrator, or whose demonstrator cannot act.
    """
    environment = make_environment(name, kwargs)
    demonstrate = _demonstrator(name, environment)
    out = Path(out)
    (out / FRAMES).mkdir(parents=True, exist_ok=True)
    shown = _shown(demonstrate, first_seed, 3 * (episodes + prompts))
    costs, last = [], first_seed
    with (out / ROWS).open('w', encoding='utf-8') as rows:
        for seed, messages, told in shown:
            rows.write(json.dumps({'messages': _on_disk(messages, out, seed), **told}) + '\n')
            costs.append(told.get('cost', 0.0))
            last = seed
            if len(costs) == episodes:
                break
    if len(costs) < episodes:
        raise WorldError(f"environment '{name}': of {3 * (episodes + prompts)} seeds {len(costs)} were demonstrated.")
    if prompts:
        with (out / PROMPTS).open('w', encoding='utf-8') as rows:
            for seed in range(last + 1, last + 1 + prompts):
                rows.write(json.dumps({'prompt': _instruction(environment, seed), 'seed': seed}) + '\n')
    close(name, environment)
    return episodes, sum(costs) / max(1, len(costs))


def _demonstrator(name: str, environment: Environment) -> Demonstrate:
    if environment.demonstration is None:
        raise WorldError(f"environment '{name}' shows nobody how to act in it: it has no method `demonstration`.")
    return environment.demonstration


def _shown(demonstrate: Demonstrate, first: int, most: int) -> Iterator[tuple[int, list[Message], dict[str, Any]]]:
    for seed in range(first, first + most):
        found = demonstrate(seed)
        if found is not None:
            yield seed, *found


def _instruction(environment: Environment, seed: int) -> str:
    shown = environment.reset({}, seed).messages
    parts = _parts(shown if isinstance(shown, str) else shown[0]['content'])
    return ''.join(part['text'] for part in parts if part['type'] == 'text')


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{'type': 'text', 'text': content}] if isinstance(content, str) else list(content)


def _on_disk(messages: list[Message], out: Path, seed: int) -> list[Message]:
    """The messages with their pictures in files, named from the folder `out`."""
    number = 0
    written = []
    for message in messages:
        parts = []
        for part in _parts(message['content']):
            if part['type'] == 'image':
                file = f'{FRAMES}/{seed:07d}_{number:03d}.png'
                part['image'].save(out / file)
                part = {'type': 'image', 'image': file}
                number += 1
            parts.append(part)
        written.append({**message, 'content': parts})
    return written
