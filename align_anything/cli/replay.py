"""The command that does recorded episodes again."""

from __future__ import annotations

from typing import Annotated

import typer

KWARGS = "Its arguments: '{size: 7}'."


def replay(
    environment: Annotated[str, typer.Argument(metavar='ENVIRONMENT', help='Name, or path/to/file.py:Class.')],
    dataset: Annotated[str, typer.Argument(metavar='DATASET', help='Recorded episodes, as train_datasets names them.')],
    template: Annotated[str, typer.Option(help='Template that reads their rows.')] = 'Messages',
    template_kwargs: Annotated[
        str, typer.Option('--template_kwargs', '--template-kwargs', help="Its arguments: '{cameras: [front]}'.")
    ] = '{}',
    split: Annotated[str | None, typer.Option(help='Split of the dataset.')] = None,
    episodes: Annotated[int, typer.Option(min=1, help='Do the first so many again.')] = 20,
    environment_kwargs: Annotated[
        str, typer.Option('--environment_kwargs', '--environment-kwargs', help=KWARGS)
    ] = '{}',
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
