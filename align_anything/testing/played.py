"""Checkpoints that act, watched in an environment: what came of episodes, and pictures of them as a GIF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from align_anything.core.types import ACTION, Episode

SHOWN, GAP, LINE = 3, 6, 12
MILLISECONDS = 450


def play(
    model: str | Path,
    environment: str,
    seeds: Sequence[int],
    *,
    kwargs: Mapping[str, Any] | None = None,
    temperature: float = 0.0,
    generations: int = 1,
    max_turns: int = 100,
    batch_size: int = 64,
) -> list[Episode]:
    """Returns episodes for each seed, behind each other, in which a checkpoint does what is most likely at each step.

    With a `temperature` it samples, `generations` for each seed. The environment reads `seed` from the row, as
    `hot_floor` does.
    """
    import torch

    from align_anything.core.types import Example
    from align_anything.environments.pool import Pool
    from align_anything.models.acting.checkpoint import load_acting, load_action_spec
    from align_anything.models.acting.spec import ActionTurns
    from align_anything.policies.acting.heads import make_head
    from align_anything.rollouts.acting import ActionRollouts
    from align_anything.rollouts.base import Sampling
    from align_anything.rollouts.episodes import Episodes

    spec = load_action_spec(model)
    engine = ActionRollouts(
        load_acting(model, torch.float32),
        spec,
        make_head(spec.config.head),
        device=torch.device('cpu'),
        batch_size=batch_size,
    )
    episodes = Episodes(
        engine,
        spec,
        Pool(environment, dict(kwargs or {})),
        max_turns=max_turns,
        max_tokens=2 * max_turns + 2,
        encoder=ActionTurns(spec),
    )
    rows = [
        Example(spec.encode_prompt([]), [], source=f'seed {seed}', meta={'seed': seed}, conversation=[])
        for seed in seeds
    ]
    sampling = Sampling(generations, max_new_tokens=1, temperature=temperature, seeds=tuple(seeds))
    return [response.episode for own in episodes.generate(rows, sampling) for response in own]


def outcome(episodes: Sequence[Episode]) -> dict[str, float]:
    """Returns the share of episodes that succeeded, their mean cost and their mean length."""
    number = len(episodes)
    return {
        'success': sum(bool(own.info.get('success')) for own in episodes) / number,
        'cost': sum(own.cost for own in episodes) / number,
        'turns': sum(len(own.turns) for own in episodes) / number,
    }


def frames_of(episode: Episode) -> list[tuple[Any, str]]:
    """Returns what was seen at each step, and what was done there."""
    shown = [
        part['image']
        for message in [*episode.asked, *episode.messages]
        for part in message['content']
        if part['type'] == 'image'
    ]
    done = [
        ', '.join(part[ACTION].names) or str([round(value, 2) for value in part[ACTION].values[0].tolist()])
        for message in episode.messages
        for part in message['content']
        if part['type'] == ACTION
    ]
    return list(zip(shown, done, strict=False))


def draw_gif(file: str | Path, episodes: Mapping[str, Sequence[Episode]], scale: int = 3) -> Path:
    """Writes episodes as one GIF: a line for each name, those of it beside each other, each with what it does.

    An episode that is over stays at its end, in a green frame if it succeeded and a red one if not.
    """
    rows = {name: [frames_of(own) for own in some[:SHOWN]] for name, some in episodes.items()}
    every = [own for some in rows.values() for own in some]
    width, height = (scale * size for size in every[0][0][0].size)
    across, down = max(map(len, rows.values())), len(rows)
    size = (across * (width + GAP) + GAP, down * (height + 3 * LINE + GAP) + GAP)
    pages = []
    for step in range(max(map(len, every)) + 3):
        page = Image.new('RGB', size, 'white')
        pen = ImageDraw.Draw(page)
        for row, (name, some) in enumerate(rows.items()):
            top = GAP + row * (height + 3 * LINE + GAP)
            pen.text((GAP, top), name, fill='black')
            for column, frames in enumerate(some):
                left = GAP + column * (width + GAP)
                picture, said = frames[min(step, len(frames) - 1)]
                page.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, top + LINE))
                own = episodes[name][column]
                pen.text((left, top + LINE + height), f'{said}  cost {_cost_until(own, step):g}', fill='black')
                if step >= len(frames):
                    colour = 'green' if own.info.get('success') else 'red'
                    pen.rectangle(
                        (left, top + LINE, left + width - 1, top + LINE + height - 1), outline=colour, width=3
                    )
        pages.append(page)
    pages[0].save(file, save_all=True, append_images=pages[1:], duration=MILLISECONDS, loop=0)
    return Path(file)


def _cost_until(episode: Episode, step: int) -> float:
    return sum(sum(turn.costs.values()) for turn in episode.turns[: step + 1])
