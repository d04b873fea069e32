"""Weights of 4 bits in the layouts of AWQ and GPTQ, written by auto-round."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from align_anything.core.errors import DataError, ModelError
from align_anything.core.files import lines_of
from align_anything.models.architecture import auto_class
from align_anything.models.checkpoint import is_multimodal, read_config

LAYOUTS = {'awq': 'auto_awq', 'gptq': 'auto_gptq'}
SCHEME = 'W4A16'
LONGEST, MOST = 2048, 512
"""Tokens of a row that weights are fitted to, and rows."""


def quantise(
    folder: Path, out: Path, layout: Literal['awq', 'gptq'], *, calibration: Path | None = None, group_size: int = 128
) -> None:
    """Writes the language model in `folder` to `out` with the linear layers of its blocks in 4 bits.

    Each `group_size` weights of a row share a scale. Without texts they are rounded to the nearest; with them
    auto-round's optimisation finds what to round up and down.

    Raises ModelError where auto-round is missing, for a model that reads media or whose layers groups do not fit;
    DataError for texts that cannot be read.
    """
    config = read_config(folder)
    if is_multimodal(config) or auto_class(config) != 'AutoModelForCausalLM':
        raise ModelError(f'{folder} is a {config.model_type}; only language models of text are written in 4 bits.')
    try:
        from auto_round import AutoRound
    except ImportError as error:
        raise ModelError(
            f"{layout} needs auto-round, of the extra 'quantize': pip install 'align-anything[quantize]' ({error})."
        ) from error
    model = AutoModelForCausalLM.from_pretrained(folder, dtype='auto')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _check_groups(model, group_size)
    # It would otherwise fetch texts from the hub.
    how: dict[str, Any] = {'iters': 0, 'disable_opt_rtn': True}
    if calibration is not None:
        rows = _rows(read_texts(calibration, tokenizer), tokenizer)
        how = {'dataset': rows, 'nsamples': len(rows), 'seqlen': rows[0].shape[1], 'batch_size': min(8, len(rows))}
    # A processor takes longer to compile blocks than to run them.
    compiles = torch.cuda.is_available()
    rounding = AutoRound(model, tokenizer, scheme=SCHEME, group_size=group_size, enable_torch_compile=compiles, **how)
    with tempfile.TemporaryDirectory(dir=out) as temporary:
        try:
            _, made = rounding.quantize_and_save(temporary, format=LAYOUTS[layout])
        # It ends the process where it cannot go on.
        except (SystemExit, RuntimeError, ValueError) as error:
            raise ModelError(f'auto-round does not write {folder} in 4 bits: {error}') from error
        for file in sorted(Path(made).iterdir()):
            shutil.move(file, out / file.name)


def read_texts(file: Path, tokenizer: Any) -> list[str]:
    """Returns the texts of JSON lines with `text`, or `messages` in the chat template. Raises DataError."""
    try:
        lines = lines_of(file.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'--calibration: {file} cannot be read: {error}') from error
    texts = [_text(line, f'line {number} of {file}', tokenizer) for number, line in enumerate(lines, start=1)]
    if not texts:
        raise DataError(f'--calibration: {file} is empty.')
    return texts


def _rows(texts: list[str], tokenizer: Any) -> list[Tensor]:
    """Returns the tokens of texts one after the other in rows of one length, `(1, length)` each."""
    ids = torch.tensor([token for text in texts for token in tokenizer(text).input_ids])
    length = min(LONGEST, len(ids))
    rows = ids[: len(ids) // length * length].view(-1, 1, length)
    return [*rows[:MOST]]


def _text(line: str, where: str, tokenizer: Any) -> str:
    try:
        row = json.loads(line)
        return row['text'] if 'text' in row else tokenizer.apply_chat_template(row['messages'], tokenize=False)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'--calibration: {where} is no JSON object with a text or messages: {error}') from error


def _check_groups(model: nn.Module, group_size: int) -> None:
    head = model.get_output_embeddings()
    widths = {layer.in_features for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head}
    wrong = sorted(width for width in widths if width % group_size)
    if wrong:
        fits = [size for size in (32, 64, 128) if not any(width % size for width in widths)]
        advice = f'Set --group_size {fits[-1]}.' if fits else 'No usual size fits.'
        raise ModelError(f'layers with {wrong[0]} inputs do not divide into groups of {group_size}. {advice}')
