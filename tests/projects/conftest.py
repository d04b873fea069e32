"""A place with all that the configurations of projects/any2any name, and its scripts as modules."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.testing.codecs import make_patch_codebook, make_spectrum_codebook
from align_anything.testing.emitting import digits, melody
from align_anything.testing.tiny.encoders import build_encoder
from tests.datasets.clips import clip, sound, tone
from tests.harness.once import once
from tests.projects.any2any import INSTRUCTION, LLAVA_ROW, PARTS, PROJECT, SCRIPTS, write_rows


@pytest.fixture(scope='session')
def workplace(tiny: Callable[..., Path], shared_cache: Path) -> Path:
    """A copy of the project with all checkpoints and data that its configurations name. Do not write into it."""

    def make(folder: Path) -> None:
        shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns('__pycache__', 'output'))
        for name, kind in PARTS.items():
            if kind in ('qwen2', 'qwen3', 'gpt2'):
                shutil.copytree(tiny(kind), folder / name)
            else:
                build_encoder(kind, folder / name)
        make_patch_codebook(
            folder / 'deepseek-community/Janus-Pro-1B', digits()[0][:99], size=(8, 8), patch=2, entries=16
        )
        make_spectrum_codebook(
            folder / 'facebook/encodec_24khz', [melody([note, 2, note]) for note in range(8)], entries=8
        )
        write_rows(folder / 'tatsu-lab/alpaca', [INSTRUCTION] * 4)
        write_rows(folder / 'liuhaotian/LLaVA-Instruct-150K', [LLAVA_ROW] * 4)
        Image.new('RGB', (40, 30), 'red').save(folder / 'liuhaotian/LLaVA-Instruct-150K' / 'red.png')
        media = folder / 'custom/multimodal_conversations' / 'path/to'
        media.mkdir(parents=True)
        Image.new('RGB', (40, 30), 'red').save(media / 'image.jpg')
        (media / 'response.wav').write_bytes(sound(tone(0.4)))
        (media / 'video.mp4').write_bytes(clip([number * 10 for number in range(8)]))

    return once(shared_cache, 'any2any', make)


@pytest.fixture
def here(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: what is in `workplace`, and room for a run."""
    for path in workplace.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'custom').unlink()
    shutil.copytree(workplace / 'custom', tmp_path / 'custom')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """`scripts('mapping')` is the script of that name."""
    monkeypatch.syspath_prepend(PROJECT / 'scripts')
    yield lambda name: __import__(name)
    # Their names are common ones, which other tests may mean otherwise.
    for name in SCRIPTS:
        sys.modules.pop(name, None)
