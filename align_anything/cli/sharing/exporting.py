"""Models for other programs: merged, as the adapter alone, or in fewer bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from align_anything.cli.merging import merge_adapter
from align_anything.cli.sharing.pipelines import export_pipeline_adapter
from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.files import new_folder, trained_model_in
from align_anything.core.registry import nearest
from align_anything.engines.checkpoint import CARD_FILE
from align_anything.models.action_space import FILE as ACTION_SPACE
from align_anything.models.adapter import find_adapter
from align_anything.models.checkpoint import ADAPTER_CONFIG, check_checkpoint, is_multimodal, read_config
from align_anything.models.declared_codes import OF_ADAPTER
from align_anything.models.diffusion.checkpoint import INDEX
from align_anything.models.diffusion.saved_lora import is_lora_folder
from align_anything.models.fewer_bits import quantise

Format = Literal['merged', 'adapter', 'gguf', 'awq', 'gptq']
FORMATS: tuple[Format, ...] = ('merged', 'adapter', 'gguf', 'awq', 'gptq')
OPTIONS = {'names': ('adapter',), 'llama_cpp': ('gguf',), 'calibration': ('awq', 'gptq'), 'group_size': ('awq', 'gptq')}
ADAPTER_FILES = (ADAPTER_CONFIG, 'adapter_model.safetensors', OF_ADAPTER, ACTION_SPACE, CARD_FILE)
CONVERTER = 'convert_hf_to_gguf.py'
LLAMA_CPP = 'LLAMA_CPP_ROOT'
TOLD = 5
"""Last lines of a failed converter that are told."""


def export(
    source: str | Path,
    out: str | Path,
    form: str,
    *,
    base: str | None = None,
    names: str | None = None,
    llama_cpp: Path | None = None,
    calibration: Path | None = None,
    group_size: int | None = None,
) -> None:
    """Writes the model in `source`, or the output folder of a run, to the new folder `out` in another form.

    `merged` is the whole model with its adapter in it, `adapter` the adapter alone; `gguf` is what llama.cpp reads,
    `awq` and `gptq` are weights of 4 bits in these layouts. An adapter is merged first for the last three.

    Args:
        base: folder or hub name of the model under an adapter; None for the one that the adapter records.
        names: after whose manner weights of the adapter of a pipeline are named: `diffusers`, `peft`, `kohya` or
            `comfyui`.
        llama_cpp: checkout of llama.cpp, whose converter is run; None for $LLAMA_CPP_ROOT.
        calibration: JSON lines of texts or conversations that weights of 4 bits are fitted to; None rounds them.
        group_size: weights that share a scale, 128 by default.

    Raises SettingsError for options that do not belong to the form, ModelError for what cannot be written in it.
    """
    given = {'names': names, 'llama_cpp': llama_cpp, 'calibration': calibration, 'group_size': group_size}
    _check(form, [name for name, value in given.items() if value is not None])
    if not Path(source).is_dir():
        raise ModelError(f'{source} is no folder; name the one that the run saved, such as <output_dir>/slice_end.')
    folder = trained_model_in(source) or Path(source)
    if form == 'merged':
        merge_adapter(folder, out, base=base)
    elif form == 'adapter':
        _export_adapter(folder, out, base, names)
    else:
        if is_lora_folder(folder) or (folder / INDEX).is_file():
            raise ModelError(f'{folder} is a pipeline, and {form} is for models that write tokens.')
        with _whole(folder, base) as model, new_folder(out) as draft:
            if form == 'gguf':
                _convert(model, draft, _converter(llama_cpp, folder))
            else:
                quantise(model, draft, form, calibration=calibration, group_size=group_size or 128)
            if (model / CARD_FILE).is_file():
                shutil.copy2(model / CARD_FILE, draft / CARD_FILE)


def _check(form: str, given: list[str]) -> None:
    if form not in FORMATS:
        close = nearest(form, list(FORMATS))
        raise SettingsError([f"--format: there is no '{form}'.{close} There are: {', '.join(FORMATS)}."])
    problems = [
        f'--{name} is for --format {" and ".join(OPTIONS[name])}.' for name in given if form not in OPTIONS[name]
    ]
    if problems:
        raise SettingsError(problems)


def _export_adapter(folder: Path, out: str | Path, base: str | None, names: str | None) -> None:
    if is_lora_folder(folder):
        with new_folder(out) as draft:
            export_pipeline_adapter(folder, draft, names or 'diffusers', base)
        return
    adapter = find_adapter(folder)
    if adapter is None:
        raise ModelError(f'{folder} holds no adapter: it has no {ADAPTER_CONFIG}, or a whole model beside it.')
    if names not in (None, 'peft'):
        raise SettingsError([f'--names {names}: adapters of models that write tokens have the names of peft.'])
    if not (folder / 'adapter_model.safetensors').is_file():
        raise ModelError(f'{folder} has no adapter_model.safetensors.')
    with new_folder(out) as draft:
        for name in ADAPTER_FILES:
            if (folder / name).is_file():
                shutil.copy2(folder / name, draft / name)


@contextmanager
def _whole(folder: Path, base: str | None) -> Iterator[Path]:
    """Yields a folder with the whole model: that of an adapter is merged for as long as the block lasts."""
    if find_adapter(folder) is None:
        if base is not None:
            raise SettingsError([f'--base is for adapters, and {folder} is a whole model.'])
        check_checkpoint(folder)
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        merged = Path(temporary) / (folder.parent.name if folder.name.startswith('slice_') else folder.name)
        merge_adapter(folder, merged, base=base)
        yield merged


def _converter(llama_cpp: Path | None, folder: Path) -> Path:
    """Returns the converter of a checkout of llama.cpp. Raises ModelError with what to do where there is none."""
    named = llama_cpp or os.environ.get(LLAMA_CPP)
    if named is None:
        raise ModelError(
            "GGUF is written by llama.cpp's own converter, which its makers publish in no package. Get it, and export "
            'again:\n'
            '  git clone --depth 1 https://github.com/ggml-org/llama.cpp\n'
            '  pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt\n'
            f'  align-anything export {folder} OUT --format gguf --llama_cpp llama.cpp\n'
            f'${LLAMA_CPP} names it too.'
        )
    script = Path(named) / CONVERTER
    if not script.is_file():
        raise ModelError(f'{named} is no checkout of llama.cpp: it has no {CONVERTER}.')
    return script


def _convert(model: Path, draft: Path, script: Path) -> None:
    """Runs the converter of llama.cpp; once more for what reads media, which is a file of its own there."""
    runs = [[]]
    if is_multimodal(read_config(model)):
        runs.append(['--mmproj'])
    for options in runs:
        file = draft / f'{"mmproj-" if options else ""}{model.name}.gguf'
        command = [sys.executable, str(script), str(model), '--outfile', str(file), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not file.is_file():
            said = '\n'.join((done.stderr or done.stdout).strip().splitlines()[-TOLD:])
            raise ModelError(f'llama.cpp does not convert {model}:\n{said}')
