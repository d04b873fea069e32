"""Whole runs in forked ranks: what a launcher does, without a launcher's half minute.

    assert run(sft(output, model, rows), ranks=2) == [Ended(0, …), Ended(0, …)]

Every rank goes through `launch`, so codes and messages are those that a user gets.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.sft import SFT
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.trainers.launch import launch
from align_anything.trainers.loops.offline import OfflineLoop
from align_anything.trainers.pairs import PAIRS, Pair
from tests.harness.ranks import RanksError, run_ranks

TEXT, IMAGE = PAIRS['text_to_text'], PAIRS['text_image_to_text']
WORDS = 'sun sea tree stone bird cloud river field house road lamp door fish salt wind star moon hill'.split()

Hook = Callable[[int], None]


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit code (None when it was killed) and everything that it wrote."""

    code: int | None
    output: str


def nothing(rank: int) -> None:
    """Leaves a rank as it is."""


def run(
    argv: list[str],
    ranks: int = 1,
    pair: Pair = TEXT,
    before: Hook = nothing,
    algorithm: type[Algorithm] = SFT,
    timeout: float = 240.0,
) -> list[Ended]:
    """Runs the trainer of `pair` on `ranks` processes. `before(rank)` may prepare each of them, to break it later.

    The curves, which take longer than all the rest, are not drawn.
    """
    warm()
    with tempfile.TemporaryDirectory(prefix='runs-') as name:
        folder = Path(name)
        try:
            run_ranks(_rank, ranks, timeout, args=(argv, pair, before, algorithm, folder))
        except RanksError as error:
            if 'did not finish in' in str(error):
                raise
        return [_ended(folder, rank) for rank in range(ranks)]


def succeed(
    argv: list[str], ranks: int = 1, pair: Pair = TEXT, before: Hook = nothing, algorithm: type[Algorithm] = SFT
) -> str:
    """As `run`, for runs that must go well; returns what rank 0 wrote."""
    ended = run(argv, ranks, pair, before, algorithm)
    assert [item.code for item in ended] == [0] * ranks, '\n'.join(item.output for item in ended)
    return ended[0].output


def die() -> None:
    """Ends this process as `kill -9` would."""
    os.kill(os.getpid(), signal.SIGKILL)


def poison(step: int, rank_of_it: int = 1, met: Path | None = None) -> Callable[[int], None]:
    """Makes every score of one rank NaN in one step, and writes which rows it scored into `met`."""

    def before(rank: int) -> None:
        inner_step, inner_score = OfflineLoop._step, DeepSpeedEngine.score

        def watched(self, loaded):
            now = rank == rank_of_it and self.progress.step + 1 == step

            def score(engine, batch, **asked):
                scored = inner_score(engine, batch, **asked)
                return scored._replace(values=scored.values * float('nan'))

            if now and met is not None:
                met.write_text('\n'.join(name for batch in loaded.batches for name in batch.sources))
            DeepSpeedEngine.score = score if now else inner_score
            return inner_step(self, loaded)

        OfflineLoop._step = watched

    return before


def warm() -> None:
    """Imports, once and before forking, what every run needs."""
    os.environ['DS_ACCELERATOR'] = 'cpu'
    import datasets
    import deepspeed
    import peft
    import torchvision
    import transformers.integrations

    import align_anything.trainers.runs.dry_run
    import align_anything.trainers.runs.offline

    assert all((datasets, deepspeed, peft, torchvision, transformers, align_anything))


def _rank(rank: int, argv: list[str], pair: Pair, before: Hook, algorithm: type[Algorithm], folder: Path) -> None:
    code = 1
    with (
        open(folder / f'{rank}.output', 'w', buffering=1) as output,
        redirect_stdout(output),
        redirect_stderr(output),
    ):
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            from align_anything.trainers.runs import begin as module

            module.plot_metrics = lambda folder: 'none'
            before(rank)
            launch(pair, algorithm, argv)
            code = 0
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            traceback.print_exc()
        (folder / f'{rank}.code').write_text(str(code))
    if code:
        raise SystemExit(code)  # lets the harness end the peers, as a launcher does


def _ended(folder: Path, rank: int) -> Ended:
    code = folder / f'{rank}.code'
    return Ended(int(code.read_text()) if code.exists() else None, (folder / f'{rank}.output').read_text())


def sft(output: Path, model: Path, rows: Path, *more: Any, template: str = 'Instruction', **settings: Any) -> list[str]:
    """The command line of a short float32 run; `settings` override or add keys, None takes one out."""
    values = {
        'model_name_or_path': model,
        'train_datasets': rows,
        'train_template': template,
        'output_dir': output,
        'log_type': 'none',
        'ds_cfgs': 'ds_z0_config.json',
        'bf16': False,
        'gradient_checkpointing': False,
        'gradient_accumulation_steps': 1,
        'per_device_train_batch_size': 2,
        'epochs': 1,
        'learning_rate': 1e-2,
        'lr_scheduler_type': 'linear',
        'lr_warmup_ratio': 0.0,
        'model_max_length': 128,
        'eval_strategy': 'no',
        'num_workers': 0,
        'save_total_limit': 0,
        **settings,
    }
    given = {key: value for key, value in values.items() if value is not None}
    return [*(part for key, value in given.items() for part in (f'--{key}', str(value))), *map(str, more)]


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """Writes one JSON object per line."""
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def text_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows for the template Instruction, no two alike, with answers of two to seven words."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        length = int(torch.randint(low, high, (), generator=generator))
        return ' '.join(WORDS[int(torch.randint(len(WORDS), (), generator=generator))] for _ in range(length))

    return [{'instruction': f'{number} {words(2, 6)}', 'output': words(2, 8)} for number in range(count)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a saved model or adapter."""
    return {name: tensor for file in sorted(folder.glob('*.safetensors')) for name, tensor in load_file(file).items()}


def lines(path: Path) -> list[Any]:
    """The records of a file of JSON lines; none when there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
