"""The commands of models that act: tokens and checkpoints for them, demonstrations, and recordings done again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

EnvironmentName = Annotated[str, typer.Argument(metavar='ENVIRONMENT', help='Name, or path/to/file.py:Class.')]
EnvironmentKwargs = Annotated[
    str, typer.Option('--environment_kwargs', '--environment-kwargs', help="Its arguments: '{size: 7}'.")
]


@app.command(name='add-action-tokens')
def add_actions(
    model: Annotated[str, typer.Argument(metavar='MODEL', help='Folder or hub name of the model.')],
    out: Annotated[Path, typer.Argument(metavar='OUT', file_okay=False, help='Folder to make for the model.')],
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
    space = ActionSpace.from_json(
        {
            'names': name or [],
            'dimensions': dimension or [],
            'bins': bins,
            'normalization': normalization,
            'chunk': chunk,
            'executed': chunk,
            'tokens': 'reserved',
        },
        'command line',
    )
    add_action_tokens(model, space, out)
    typer.echo(f'model with tokens for actions: {out}')


@app.command(name='convert-spoc')
def convert_spoc(
    file: Annotated[Path, typer.Argument(metavar='FILE', help='Published checkpoint of SPOC, a .ckpt.')],
    out: Annotated[Path, typer.Argument(metavar='OUT', file_okay=False, help='Folder to make.')],
    version: Annotated[str, typer.Option(help='What it is: small_3, small_6, base_3 or base_6.')] = 'small_3',
    tokenizer: Annotated[str, typer.Option(help='Folder or hub name of the tokenizer of goals.')] = 't5-small',
) -> None:
    """Make a checkpoint of a published SPOC, which then trains and acts as any other (docs/actions.md)."""
    from align_anything.models.acting.published import convert_published
    from align_anything.trainers.launch import quieten_libraries

    quieten_libraries()
    typer.echo(f'checkpoint: {convert_published(file, out, version, tokenizer)}')


@app.command()
def demonstrations(
    environment: EnvironmentName,
    out: Annotated[Path, typer.Argument(metavar='OUT', file_okay=False, help='Folder to write into.')],
    episodes: Annotated[int, typer.Option(min=1, help='How many episodes.')] = 1000,
    first_seed: Annotated[int, typer.Option('--first_seed', '--first-seed', min=0, help='Seed of the first one.')] = 0,
    prompts: Annotated[int, typer.Option(min=0, help='Prompts of further episodes, for online training.')] = 0,
    environment_kwargs: EnvironmentKwargs = '{}',
) -> None:
    """Write how an environment is acted in by somebody who knows how: rows to learn from (docs/actions.md)."""
    from align_anything.configs.yaml_text import parse_yaml
    from align_anything.environments.base import checked_kwargs
    from align_anything.environments.demonstrations import write_demonstrations

    kwargs = checked_kwargs(environment, parse_yaml(environment_kwargs) or {})
    written, cost = write_demonstrations(environment, kwargs, out, episodes, first_seed, prompts)
    typer.echo(f'{written} episodes, each at a cost of {cost:.2f}: {out}')


@app.command()
def replay(
    environment: EnvironmentName,
    dataset: Annotated[str, typer.Argument(metavar='DATASET', help='Recorded episodes, as train_datasets names them.')],
    template: Annotated[str, typer.Option(help='Template that reads their rows.')] = 'Messages',
    template_kwargs: Annotated[
        str, typer.Option('--template_kwargs', '--template-kwargs', help="Its arguments: '{cameras: [front]}'.")
    ] = '{}',
    split: Annotated[str | None, typer.Option(help='Split of the dataset.')] = None,
    episodes: Annotated[int, typer.Option(min=1, help='Do the first so many again.')] = 20,
    environment_kwargs: EnvironmentKwargs = '{}',
) -> None:
    """Do recorded episodes again in their environment, and say what of the recordings is wrong; ends with 1 then."""
    from align_anything.cli.replaying import replay_dataset
    from align_anything.configs.yaml_text import parse_yaml

    kwargs, own = parse_yaml(environment_kwargs) or {}, parse_yaml(template_kwargs) or {}
    compared = replay_dataset(environment, kwargs, dataset, template, own, split, episodes)
    for line in compared.lines():
        typer.echo(line)
    if not compared.agrees:
        raise typer.Exit(1)
