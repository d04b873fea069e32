"""Fixtures that every test may use, and the environment that makes runs repeatable."""

from __future__ import annotations

import gc
import os
import tempfile

# Until all is imported and collected there is nothing to free, and millions of objects to look at for it.
gc.disable()
# Before anything imports torch or tokenizers: threads that exist already would make forking unsafe.
os.environ.update(
    OMP_NUM_THREADS='1',
    TOKENIZERS_PARALLELISM='false',
    HF_HUB_OFFLINE='1',
    HF_DATASETS_OFFLINE='1',
    CUDA_VISIBLE_DEVICES=os.environ.get('CUDA_VISIBLE_DEVICES', ''),
    # Code out of checkpoints is copied there before it runs.
    HF_MODULES_CACHE=os.path.join(tempfile.gettempdir(), f'hf-modules-{os.getpid()}'),
    # A process that was killed while compiling an operator leaves a lock that all later ones wait for.
    TORCH_EXTENSIONS_DIR=os.path.join(
        tempfile.gettempdir(), f'torch-extensions-{os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())}'
    ),
)

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.harness.once import once  # noqa: E402
from tests.harness.ranks import import_what_ranks_did  # noqa: E402
from tests.harness.shares import is_left_out  # noqa: E402
from tests.harness.tiers import COUNTS, LONG, Together, count_tiers  # noqa: E402
from tests.harness.times import Times  # noqa: E402

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # The first backward pass starts a thread for each device, and no rank that is forked beside such threads can have
    # one. Some libraries bring devices along that are none: none of them has been imported yet.
    torch.zeros((), requires_grad=True).backward()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Times())


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together | None:
    """Spreads tests as tests/harness/tiers.py says, where `--dist loadgroup` asks for groups."""
    return Together(config, log) if config.getoption('dist') == 'loadgroup' else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out `gpu` tests where there is no device, and `extended` ones unless they are asked for.

    It begins with the longest files.
    """
    for item in items:
        if is_left_out(item):
            item.add_marker(pytest.mark.extended)
    config.stash[COUNTS] = count_tiers(items)
    if 'extended' not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker('extended')]
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker('gpu'):
            item.add_marker(pytest.mark.skip(reason='no CUDA device'))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_runtest_logfinish() -> None:
    import_what_ranks_did()


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that was itself started by a launcher must not make tests believe they are rank 3 of 8."""
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope='session')
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all xdist workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base
    folder = root / 'shared_cache'
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope='session')
def tiny(shared_cache: Path) -> Callable[..., Path]:
    """`tiny('llava')` returns the folder of a tiny random checkpoint, built once a run. Do not write into it.

    Keyword arguments are those of `align_anything.testing.tiny.build`: `tiny('qwen2', layers=3)`.
    """

    def checkpoint(family: str, **options: Any) -> Path:
        from align_anything.testing.tiny import build

        name = '-'.join([family, *(f'{key}{value}' for key, value in sorted(options.items()))])
        return once(shared_cache, name, lambda folder: build(family, folder, **options))

    return checkpoint


@pytest.fixture(scope='session')
def emitting(shared_cache: Path) -> Callable[..., Path]:
    """`emitting('drawing')` returns the folder of an untrained model with tokens for media, built once a run.

    `drawing` has those of pictures, `singing` those of melodies, `unified` both; keyword arguments are those of
    `align_anything.testing.emitting`. Do not write into it.
    """

    def checkpoint(kind: str, **options: Any) -> Path:
        from align_anything.testing import emitting

        name = '-'.join([kind, *(f'{key}{value}' for key, value in sorted(options.items()))])
        makers = {
            'drawing': emitting.drawing_model,
            'singing': emitting.singing_model,
            'unified': emitting.unified_model,
        }
        return once(shared_cache, name, lambda folder: makers[kind](folder, **options))

    return checkpoint
