"""What `align-anything` takes on its command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from align_anything.cli.acting import app as acting
from align_anything.core.errors import AlignAnythingError, SettingsError

USER_ERROR = 2
INTERRUPTED = 130
PIPED_WIDTH = 160
# The settings of a run go through to it untouched, --help among them.
RUN_SETTINGS = {'ignore_unknown_options': True, 'allow_extra_args': True, 'help_option_names': []}

app = typer.Typer(
    help='Align any-to-any models: one algorithm, any modality.',
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option('--version', help='Print the version and stop.')] = False) -> None:
    """Align any-to-any models: one algorithm, any modality."""
    if version:
        from align_anything import __version__

        typer.echo(f'align-anything {__version__}')
        raise typer.Exit


PairName = Annotated[str | None, typer.Argument(metavar='PAIR', help='Modality pair, such as text_image_to_text.')]
AlgorithmName = Annotated[str | None, typer.Argument(metavar='ALGORITHM', help='Algorithm, such as sft.')]
AsJson = Annotated[bool, typer.Option('--json', help='Print JSON instead of a table.')]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command. An error that is the user's to mend is printed without a traceback and ends with code 2."""
    try:
        app(args=None if argv is None else list(argv), prog_name='align-anything')
    except AlignAnythingError as error:
        from align_anything.core.logging import get_logger

        get_logger(__name__).error('%s:\n%s', type(error).__name__, error)
        sys.exit(USER_ERROR)


@app.command(context_settings=RUN_SETTINGS, options_metavar='[SETTINGS]')
def train(context: typer.Context, pair: PairName = None, algorithm: AlgorithmName = None) -> None:
    """Run a training: the same as python -m align_anything.trainers.PAIR.ALGORITHM.

    PAIR ALGORITHM --help lists the settings.
    """
    _check_order(context, pair, algorithm)
    from align_anything.cli.leaves import find_run
    from align_anything.trainers.launch import launch

    launch(*find_run(pair, algorithm), context.args)


@app.command(context_settings=RUN_SETTINGS, options_metavar='[SETTINGS]')
def generate(context: typer.Context, pair: PairName = None) -> None:
    """Answer the prompts of a file or dataset with a checkpoint: the same as align_anything.trainers.PAIR.generate.

    PAIR --help lists the settings.
    """
    _check_order(context, pair, 'generate')
    from align_anything.cli.leaves import find_run
    from align_anything.trainers.launch import launch

    launch(*find_run(pair, 'generate'), context.args)


@app.command(context_settings=RUN_SETTINGS, options_metavar='[SETTINGS]')
def evaluate(context: typer.Context, pair: PairName = None) -> None:
    """Answer the prompts of data with a checkpoint, and measure the answers: numbers, intervals, a page.

    PAIR --help lists the settings; docs/evaluating.md the tasks.
    """
    _check_order(context, pair, 'evaluate')
    from align_anything.algorithms.evaluate import Evaluate
    from align_anything.trainers.launch import settings_of
    from align_anything.trainers.pairs import find_pair

    its_pair = find_pair(pair)
    resolved = settings_of(its_pair, Evaluate, context.args, os.environ)
    # Imported once the settings are right: --help need not wait for it.
    from align_anything.evaluation.run import evaluate as evaluate_model
    from align_anything.evaluation.run import shown

    results = evaluate_model(its_pair, resolved)
    for table in shown(results) if results is not None else ():
        _show(table)


@app.command(context_settings=RUN_SETTINGS, options_metavar='[SETTINGS]')
def inspect(
    context: typer.Context,
    pair: PairName = None,
    algorithm: AlgorithmName = None,
    rows: Annotated[int | None, typer.Option(min=1, help='Read only so many rows of each set; all by default.')] = None,
    report: Annotated[
        Path | None, typer.Option(help='HTML file to write; <output_dir>/inspect.html by default.')
    ] = None,
) -> None:
    """Look at the data of a run as it would train on them. Reads no weights.

    Takes the settings of the run: PAIR ALGORITHM --help lists them.
    """
    _check_order(context, pair, algorithm)
    if '--help' in context.args or '-h' in context.args:
        typer.echo(context.get_help() + '\n')
    from align_anything.cli.inspection import inspect_run
    from align_anything.cli.leaves import find_run

    inspect_run(*find_run(pair, algorithm), context.args, rows=rows, report=report)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar='FILE', help='YAML file that says what to search (docs/python.md).')],
) -> None:
    """Run one training with several settings, or go on with it, and print a table, the best first."""
    from align_anything.cli.sweeping import sweep as run_sweep
    from align_anything.cli.sweeping import table
    from align_anything.configs.sweep import read_sweep

    try:
        made = run_sweep(read_sweep(file), str(file))
    except KeyboardInterrupt:
        typer.echo(f'stopped; the same command goes on: align-anything sweep {file}', err=True)
        raise typer.Exit(INTERRUPTED) from None
    _show(table(made.rows()))
    typer.echo(f'table: {made.folder / "table.csv"}')


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(metavar='ADAPTER', help='Folder with the LoRA adapter.')],
    out: Annotated[Path, typer.Argument(metavar='OUT', file_okay=False, help='Folder to make for the merged model.')],
    base: Annotated[
        str | None,
        typer.Option(help='Folder or hub name of the model under the adapter; by default the one it records.'),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option('--trust-remote-code', help='Let the checkpoint run Python code of its own.')
    ] = False,
) -> None:
    """Merge a LoRA adapter into its model, in full precision: a checkpoint that plain transformers loads."""
    from align_anything.cli.merging import merge_adapter
    from align_anything.trainers.launch import quieten_libraries

    quieten_libraries()
    merge_adapter(adapter, out, base=base, trust_remote_code=trust_remote_code)
    typer.echo(f'merged model: {out}')


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar='CHECKPOINT', help='Model or adapter, or folder of a run.')],
    out: Annotated[Path, typer.Argument(metavar='OUT', file_okay=False, help='Folder to make.')],
    form: Annotated[str, typer.Option('--format', help='merged, adapter, gguf, awq or gptq.')],
    base: Annotated[
        str | None,
        typer.Option(help='Folder or hub name of the model under an adapter; by default the one it records.'),
    ] = None,
    names: Annotated[
        str | None, typer.Option(help='Of the adapter of a pipeline: diffusers (default), peft, kohya or comfyui.')
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option('--llama_cpp', '--llama-cpp', help='Checkout of llama.cpp, for gguf; also $LLAMA_CPP_ROOT.'),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help='JSON lines of texts or messages that awq and gptq fit to; else they round.')
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option('--group_size', '--group-size', min=1, help='Weights with one scale in awq and gptq; 128.'),
    ] = None,
) -> None:
    """Write a model for other programs: merged, its adapter alone, GGUF, or 4 bits in the layout of AWQ or GPTQ."""
    from align_anything.cli.sharing.exporting import export as export_to
    from align_anything.trainers.launch import quieten_libraries

    quieten_libraries()
    export_to(
        checkpoint,
        out,
        form,
        base=base,
        names=names,
        llama_cpp=llama_cpp,
        calibration=calibration,
        group_size=group_size,
    )
    typer.echo(f'{form}: {out}')


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar='FOLDER', help='Model, adapter or pipeline, or folder of a run.')],
    repo_id: Annotated[str, typer.Argument(metavar='REPO_ID', help='Repository on the hub: owner/name.')],
    public: Annotated[bool, typer.Option('--public', help='Let everyone see it; private by default.')] = False,
    dry_run: Annotated[
        bool, typer.Option('--dry_run', '--dry-run', help='List the files, and upload nothing.')
    ] = False,
    base: Annotated[
        str | None, typer.Option(help='Hub name of the model under an adapter; by default the one it records.')
    ] = None,
) -> None:
    """Upload a model with its card to the Hugging Face hub; as $HF_TOKEN or `hf auth login` say who you are."""
    from align_anything.cli.sharing.pushing import check_repo_id, prepare, send

    check_repo_id(repo_id)
    upload = prepare(folder, base=base)
    typer.echo(str(upload))
    upload.check_secrets()
    if not dry_run:
        typer.echo(send(upload, repo_id, public=public))


@app.command(context_settings={'ignore_unknown_options': True, 'allow_extra_args': True})
def compose(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help='Folder to make for the composed model.')],
    language_model: Annotated[
        str | None,
        typer.Option('--language_model', '--language-model', help='Folder or hub name of the language model.'),
    ] = None,
    image: Annotated[list[str] | None, typer.Option(help='Encoder of images; twice for two of them.')] = None,
    audio: Annotated[list[str] | None, typer.Option(help='Encoder of audio; twice for two of them.')] = None,
    video: Annotated[
        list[str] | None, typer.Option(help='Encoder of videos, or frames: that of images, frame by frame.')
    ] = None,
    projector: Annotated[str | None, typer.Option(help='linear, mlp (default), transformer or expand.')] = None,
    seed: Annotated[int | None, typer.Option(help='Seed of the first weights of the projectors.')] = None,
    config: Annotated[Path | None, typer.Option(help='YAML file with these settings and those of media.')] = None,
    with_code: Annotated[
        bool, typer.Option('--with_code', '--with-code', help='Put the code of the model into the folder too.')
    ] = False,
) -> None:
    """Compose encoders of images, audio and videos and a language model into one checkpoint.

    Settings of one kind of media follow as --image.select patch or --audio.num_tokens 32; docs/composed.md lists them.
    """
    from align_anything.cli.composing import compose_settings

    named = {'image': image, 'audio': audio, 'video': video}
    given = {'language_model': language_model, **named, 'projector': projector, 'seed': seed}
    cfgs = compose_settings(given, context.args, config)
    from align_anything.models.composed.compose import compose as compose_model
    from align_anything.trainers.launch import quieten_libraries

    quieten_libraries()
    compose_model(cfgs, out, with_code=with_code)
    typer.echo(f'composed model: {out}')


@app.command(name='add-media-tokens')
def add_tokens(
    model: Annotated[str, typer.Argument(metavar='MODEL', help='Folder or hub name of the language model.')],
    out: Annotated[Path, typer.Argument(metavar='OUT', file_okay=False, help='Folder to make for the model.')],
    image: Annotated[Path | None, typer.Option(help='Folder of a codec of images.')] = None,
    audio: Annotated[Path | None, typer.Option(help='Folder of a codec of audio.')] = None,
    video: Annotated[Path | None, typer.Option(help='Folder of a codec of videos.')] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar='KIND=GRID', help='Grid of all media of a kind in codes: image=16x16; once for each.'),
    ] = None,
    max_length: Annotated[
        list[str] | None,
        typer.Option(
            '--max_length', '--max-length', metavar='KIND=TOKENS', help='Most tokens of a medium: audio=1500.'
        ),
    ] = None,
) -> None:
    """Give a language model the tokens of codecs, so that it can learn to write their media."""
    from align_anything.cli.tokens import grids_of, lengths_of
    from align_anything.models.media_tokens import add_media_tokens
    from align_anything.trainers.launch import quieten_libraries

    quieten_libraries()
    named = {'image': image, 'audio': audio, 'video': video}
    codecs = {kind: folder for kind, folder in named.items() if folder is not None}
    if not codecs:
        raise SettingsError(['command line: name a codec: --image, --audio or --video.'])
    add_media_tokens(model, codecs, out, sizes=grids_of(size or []), max_lengths=lengths_of(max_length or []))
    typer.echo(f'model with media tokens: {out}')


for command in acting.registered_commands:
    app.registered_commands.append(command)


@app.command(name='tokenize-media', context_settings=RUN_SETTINGS, options_metavar='[SETTINGS]')
def tokenize(
    context: typer.Context,
    pair: PairName = None,
    algorithm: AlgorithmName = None,
    out: Annotated[Path, typer.Option(help='File of JSON lines to write.')] = Path('tokenized.jsonl'),
) -> None:
    """Make the codes of the media of a run's data, and write its rows with them.

    Takes the settings of the run: PAIR ALGORITHM --help lists them.
    """
    _check_order(context, pair, algorithm)
    if '--help' in context.args or '-h' in context.args:
        typer.echo(context.get_help() + '\n')
    from align_anything.cli.leaves import find_run
    from align_anything.cli.tokenizing import tokenize_media

    rows = tokenize_media(*find_run(pair, algorithm), context.args, out)
    typer.echo(f'{rows} rows with codes: {out}')


@app.command(context_settings=RUN_SETTINGS, options_metavar='[SETTINGS]')
def chat(context: typer.Context) -> None:
    """Talk with a checkpoint in the terminal, with two side by side (--compare), or with a server (--url).

    --help lists the settings; /help in the conversation lists what may be said.
    """
    from align_anything.serve.chat.run import chat as talk

    talk(context.args)


@app.command(context_settings=RUN_SETTINGS, options_metavar='[SETTINGS]')
def serve(context: typer.Context) -> None:
    """Serve a checkpoint over HTTP in the form of OpenAI, and a reward model beside it or alone.

    --help lists the settings.
    """
    from align_anything.serve.run import serve as serve_models

    serve_models(context.args)


@app.command(name='serve-environment')
def serve_world(
    name: Annotated[str, typer.Argument(metavar='NAME', help='Environment: a registered name, or file.py:Class.')],
    kwargs: Annotated[str, typer.Option(help='Its arguments, such as {high: 20}.')] = '{}',
    workers: Annotated[
        int | None, typer.Option(min=1, help='Processes for its episodes; by default as many as the machine has cores.')
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help='Seconds in which it must reset, step or score.')] = 120.0,
    host: Annotated[str, typer.Option(help='Address to listen at; 0.0.0.0 lets other machines in.')] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=1, max=65535, help='Port to listen at.')] = 8100,
    api_key_file: Annotated[
        str | None, typer.Option('--api_key_file', '--api-key-file', help='File of keys, of which requests bring one.')
    ] = None,
    devices: Annotated[bool, typer.Option('--devices', help='Let it use the GPUs of this machine.')] = False,
) -> None:
    """Serve an environment to runs elsewhere: they name its address as --environment (docs/environments.md)."""
    from align_anything.serve.environments import serve_environment

    serve_environment(name, kwargs, workers, timeout, host, port, api_key_file, devices)


@app.command()
def ui(
    root: Annotated[Path, typer.Option(help='Folder that models, data and outputs lie in.')] = Path('.'),
    host: Annotated[str, typer.Option(help='Address to listen at; 0.0.0.0 lets other machines in.')] = '127.0.0.1',
    port: Annotated[int, typer.Option(help='Port to listen at.')] = 7860,
    share: Annotated[bool, typer.Option('--share', help='Open a public address too, by gradio.')] = False,
    password_file: Annotated[
        str | None,
        typer.Option('--password_file', '--password-file', help='File with the password that browsers must give.'),
    ] = None,
) -> None:
    """Open a web page to set up, start and watch runs, to talk with models and to look at data (docs/web.md)."""
    from align_anything.cli.checkpoints import known_checkpoints
    from align_anything.serve.ui.run import serve_page

    serve_page(root, host, port, share=share, password_file=password_file, known=known_checkpoints())


@app.command()
def models(
    family: Annotated[str | None, typer.Argument(metavar='[FAMILY]', help='Tell all of this family or id.')] = None,
    as_json: AsJson = False,
) -> None:
    """List the model families and what each reads, or the runs, layouts and checkpoints of one."""
    from transformers.utils import logging

    from align_anything.cli.families import families, families_as_json, families_table, family_table, find_family
    from align_anything.trainers.launch import quieten_libraries

    quieten_libraries()
    # Default configurations are not ones that anybody uses, and it says so.
    logging.set_verbosity_error()
    found = families() if family is None else [find_family(family)]
    if as_json:
        _show(families_as_json(found))
    else:
        _show(families_table(found) if family is None else family_table(*found))


@app.command(name='plan')
def plan_run(
    model: Annotated[str, typer.Option(help='Folder or hub name of a model; its configuration alone is read.')],
    gpus: Annotated[int, typer.Option(min=1, help='Devices.')],
    gpu_memory: Annotated[float, typer.Option('--gpu_memory', '--gpu-memory', min=1, help='GiB of each device.')],
    pair: Annotated[str, typer.Option(help='Modality pair.')] = 'text_to_text',
    algorithm: Annotated[str, typer.Option(help='Algorithm.')] = 'sft',
    device: Annotated[str, typer.Option(help='Kind of the devices, as they call themselves.')] = 'H100',
    prompt: Annotated[int, typer.Option(min=1, help='Tokens of a prompt, without media.')] = 512,
    response: Annotated[int, typer.Option(min=1, help='Tokens of a response.')] = 512,
    images: Annotated[int, typer.Option(min=0, help='Pictures of a prompt.')] = 0,
    image_size: Annotated[
        int | None,
        typer.Option('--image_size', '--image-size', min=14, help='Pixels of a side of each, and of what is written.'),
    ] = None,
    frames: Annotated[int, typer.Option(min=0, help='Frames of a video, in the prompt or written.')] = 0,
    seconds: Annotated[float, typer.Option(min=0, help='Of a sound, in the prompt or written.')] = 0.0,
    rows: Annotated[int, typer.Option(min=1, help='Prompts of an optimizer step, over all devices.')] = 64,
    generations: Annotated[int, typer.Option(min=1, help='Responses to a prompt, where they are generated.')] = 8,
    steps: Annotated[int, typer.Option(min=1, help='Denoising steps of a rollout.')] = 10,
    lora: Annotated[bool, typer.Option('--lora', help='Train adapters.')] = False,
    qlora: Annotated[bool, typer.Option('--qlora', help='Train adapters over weights in 4 bits.')] = False,
    ema: Annotated[bool, typer.Option('--ema', help='Keep an average of the weights of a denoiser.')] = False,
    efficiency: Annotated[
        float, typer.Option(min=0.01, max=1, help='Share of what a device can do at best that training reaches.')
    ] = 0.5,
    network: Annotated[float, typer.Option(min=0.1, help='GB/s of a device to other machines.')] = 50.0,
) -> None:
    """Plan a run on paper, without a model: what fits, and how long a step would take (docs/planning.md)."""
    from align_anything.cli.planning import device_named, planner_of, shown
    from align_anything.trainers.launch import quieten_libraries
    from align_anything.trainers.runs.planning.subject import Asked

    quieten_libraries()
    asked = Asked(
        gpus, gpu_memory, device_named(device), prompt=prompt, response=response, images=images, image_size=image_size,
        frames=frames, seconds=seconds, rows=rows, generations=generations, steps=steps, use_lora=lora or qlora,
        use_bnb=qlora, ema=ema, efficiency=efficiency, network=network,
    )  # fmt: skip
    for what in shown(planner_of(model, pair, algorithm, asked), asked):
        _show(what)


@app.command()
def env() -> None:
    """Print what a bug report needs: versions, the machine, its devices, and what the environment sets."""
    from align_anything.cli.environment import environment

    for name, value in environment().items():
        typer.echo(f'{name}: {value}')


@app.command()
def templates(as_json: AsJson = False) -> None:
    """List the dataset templates with the hooks and options of each."""
    from align_anything.cli.templates import templates_as_json, templates_table

    _show(templates_as_json() if as_json else templates_table())


def _show(what: object) -> None:
    if isinstance(what, str):
        typer.echo(what)
        return
    from rich.console import Console

    # What is piped is searched or saved, where lines that fit a screen are of no use.
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH).print(what)


def _check_order(context: typer.Context, pair: str | None, algorithm: str | None) -> None:
    """Ends with the help of the command where no pair is given."""
    if pair in (None, '--help', '-h'):
        typer.echo(context.get_help())
        raise typer.Exit
    wrong = next((word for word in (pair, algorithm) if word is not None and word.startswith('-')), None)
    if wrong is not None or algorithm is None:
        found = f'found {wrong}' if wrong else f"no algorithm follows '{pair}'"
        raise SettingsError([f'command line: the modality pair and the algorithm come first, then settings; {found}.'])
