"""Ways to resolve a run of the made-up algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from align_anything.configs.resolve import Resolved, resolve
from align_anything.core.errors import SettingsError
from tests.configs.made_up import KNOWN, SFT


@pytest.fixture
def needed(tmp_path: Path) -> list[str]:
    """The keys without which no run starts."""
    return (
        f'--model_name_or_path m --train_datasets d.jsonl --train_template Alpaca --output_dir {tmp_path / "out"}'
    ).split()


@pytest.fixture
def run(needed: list[str]) -> Callable[..., Resolved]:
    """`run('--epochs 2')` resolves a text_to_text run with the needed keys and these."""

    def resolve_run(
        words: str | list[str] = '', environ: Mapping[str, str] | None = None, pair: str = 'text_to_text'
    ) -> Resolved:
        argv = words.split() if isinstance(words, str) else words
        return resolve(pair, 'sft', SFT, KNOWN, [*needed, *argv], environ or {})

    return resolve_run


@pytest.fixture
def problems(run: Callable[..., Resolved]) -> Callable[..., list[str]]:
    """Like `run`, for settings that must fail: returns the problems."""

    def failing(words: str | list[str] = '', environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            run(words, environ)
        return caught.value.problems

    return failing
