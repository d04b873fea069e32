"""The commands for policies that act: tokens for their actions, and demonstrations to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_actions(
    model: Annotated[str, typer.Argument(metavar='MODEL', help='Folder or hub name of the model.')],
    out: Annotated[Path, typer.Argument(metavar='OUT', help='Folder to make for the model with the tokens.')],
    name: Annotated[list[str] | None, typer.Option(help='A named action; once for each.')] = None,
    dimension: Annotated[
        list[str] | None, typer.Option(help='In place of names: a number of each action; once for each.')
    ] = None,
    bins: Annotated[int, typer.Option(min=2, help='How many values of a number the tokens tell apart.')] = 256,
    normalization: Annotated[
        str, typer.Option(help='What brings numbers to -1 to 1: quantiles, min_max or identity.')
    ] = 'quantiles',
    chunk: Annotated[int, typer.Option(min=1, help='Steps that are said in one turn.')] = 1,
) -> None:
    """Give a model tokens for actions, so that it can learn to act (docs/actions.md)."""
    from align_anything.core.actions import ActionSpace
    from align_anything.models.action_tokens import add_action_tokens
    from align_anything.trainers.launch import quieten_libraries

    quieten_libraries()
    asked = {'names': name or [], 'dimensions': dimension or [], 'bins': bins, 'normalization': normalization}
    space = ActionSpace.from_json({**asked, 'chunk': chunk, 'executed': chunk, 'tokens': 'reserved'}, 'command line')
    add_action_tokens(model, space, out)
    typer.echo(f'model with tokens for actions: {out}')


def demonstrations(
    environment: Annotated[str, typer.Argument(metavar='ENVIRONMENT', help='Name, or path/to/file.py:Class.')],
    out: Annotated[Path, typer.Argument(metavar='OUT', help='Folder to write into.')],
    episodes: Annotated[int, typer.Option(min=1, help='How many episodes.')] = 1000,
    first_seed: Annotated[int, typer.Option('--first_seed', '--first-seed', min=0, help='Seed of the first one.')] = 0,
    prompts: Annotated[int, typer.Option(min=0, help='Prompts of further episodes, for online training.')] = 0,
    environment_kwargs: Annotated[
        str, typer.Option('--environment_kwargs', '--environment-kwargs', help="Its arguments: '{size: 7}'.")
    ] = '{}',
) -> None:
    """Write how an environment is acted in by somebody who knows how: rows to learn from (docs/actions.md)."""
    from align_anything.configs.yaml_text import parse_yaml
    from align_anything.environments.base import checked_kwargs
    from align_anything.environments.demonstrations import write_demonstrations

    kwargs = checked_kwargs(environment, parse_yaml(environment_kwargs) or {})
    written, cost = write_demonstrations(environment, kwargs, out, episodes, first_seed, prompts)
    typer.echo(f'{written} episodes, each at a cost of {cost:.2f}: {out}')
