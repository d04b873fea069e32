"""Samples of several sizes in one call of a transformer: filled up to the longest, each attending to itself alone.

Most transformers of diffusers take no mask for the tokens of their samples, and one table of positions for all rows. So
a call is made as for samples of one size, as many tokens as the longest has: what mixes tokens is attention alone, and
that is computed for each length by itself, of the tokens that are there, wherever `scaled_dot_product_attention` is
called. Where a denoiser turns queries and keys by positions that all rows share, they are turned here instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from align_anything.core.errors import ModelError

Turn = Callable[..., Tensor]


@dataclass(frozen=True)
class Rows:
    """Which tokens of the rows of a call are there.

    Attributes:
        lengths: tokens of the sample in each row.
        longest: tokens that all rows have of samples; never as many as prompts have, so that no attention is mistaken.
        text: tokens of prompts that are attended to beside those of samples, 0 where prompts have an attention of their
            own.
        text_first: whether they come before them.
        turn: turns queries and keys `(rows, heads, tokens, size)` by `tables`; None where the denoiser does.
        tables: of positions, `(rows, …)` each.
    """

    lengths: tuple[int, ...]
    longest: int
    text: int = 0
    text_first: bool = True
    turn: Turn | None = None
    tables: tuple[Tensor, ...] = ()

    def of(self, rows: Tensor) -> Rows:
        """Returns what it is for some of the rows, `(chosen,)`."""
        lengths = tuple(self.lengths[row] for row in rows.tolist())
        return replace(self, lengths=lengths, tables=tuple(table[rows] for table in self.tables))

    def turning(self, sizes: Sequence[Tensor], tables: Sequence[Sequence[Tensor]]) -> Rows:
        """Returns it with the tables `(tokens, …)` of each batch, in which prompts may stand before samples."""
        length = self.longest + len(tables[0][0]) - self.lengths[0]
        columns = (zip(own, sizes, strict=True) for own in zip(*tables, strict=True))
        by_row = ([table.expand(len(batch), *table.shape) for table, batch in own] for own in columns)
        return replace(self, tables=tuple(filled(own, length) for own in by_row))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how: Any) -> Tensor:
        """Returns the attention `(rows, heads, tokens, size)`, zero for tokens that are not there."""
        text = key.shape[2] - self.longest
        if text not in (0, self.text):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **how)
        if self.turn is not None:
            query, key = self.turn(query, *self.tables), self.turn(key, *self.tables)
        made, start = [], 0
        for length, same in groupby(self.lengths):
            rows = slice(start, start := start + len(list(same)))
            kept = partial(self._kept, length=length, text=text)
            mask = None if attn_mask is None else kept(attn_mask[rows], dim=-1)
            seen = (kept(states[rows]) for states in (query, key, value))
            made.append(self._filled(F.scaled_dot_product_attention(*seen, attn_mask=mask, **how), length, text))
        return torch.cat(made)

    def _kept(self, states: Tensor, length: int, text: int, dim: int = 2) -> Tensor:
        """The tokens that are there, in their order."""
        if self.text_first or not text:
            return states.narrow(dim, 0, text + length)
        return torch.cat([states.narrow(dim, 0, length), states.narrow(dim, self.longest, text)], dim)

    def _filled(self, states: Tensor, length: int, text: int) -> Tensor:
        missing = (0, 0, 0, self.longest - length)
        if self.text_first or not text:
            return F.pad(states, missing)
        return torch.cat([F.pad(states[:, :, :length], missing), states[:, :, length:]], 2)


_ROWS: ContextVar[Rows | None] = ContextVar('rows', default=None)


class _Attending(TorchFunctionMode):
    met = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rows = _ROWS.get()
        if func is F.scaled_dot_product_attention and rows is not None:
            self.met = True
            return rows.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def kept_apart(rows: Rows) -> Iterator[None]:
    """Computes attention in here as `rows` says. Raises ModelError where none of it goes through PyTorch's function."""
    with _set(rows), _Attending() as attending:
        yield
    if not attending.met:
        raise ModelError(
            'samples of several sizes in one call need the attention of PyTorch, and diffusers was told to use another '
            'backend: unset DIFFUSERS_ATTN_BACKEND, or leave out train_cfgs.max_length_per_batch.'
        )


@contextmanager
def narrowed(chosen: Tensor) -> Iterator[None]:
    """Is for a call in `kept_apart` of some of its rows, `(chosen,)`; elsewhere it does nothing."""
    rows = _ROWS.get()
    with _set(None if rows is None else rows.of(chosen)):
        yield


def present() -> Rows:
    """Returns the rows of the call that `kept_apart` is around."""
    rows = _ROWS.get()
    assert rows is not None
    return rows


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, which calls a layer, so that the backward pass computes it again for the same rows."""

    def called(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        rows = _ROWS.get()
        return function(layer if rows is None else partial(_again, rows, layer), *args, **kwargs)

    return called


def _again(rows: Rows, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if _ROWS.get() is rows:
        return layer(*args, **kwargs)
    with kept_apart(rows):
        return layer(*args, **kwargs)


@contextmanager
def _set(rows: Rows | None) -> Iterator[None]:
    token = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(token)


@contextmanager
def replaced(denoiser: nn.Module, name: str, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """Calls `function` in here in place of a method of all modules whose own name is `name`."""
    modules = named(denoiser, name)
    before = [vars(module).get(method) for module in modules]
    for module in modules:
        setattr(module, method, function)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            delattr(module, method)
            if own is not None:
                setattr(module, method, own)


def named(denoiser: nn.Module, name: str) -> list[nn.Module]:
    """Returns the modules of a denoiser whose own name is `name`."""
    return [module for path, module in denoiser.named_modules() if path.rpartition('.')[2] == name]


def rows_of(sizes: Sequence[Tensor], tokens: Sequence[int], prompt: int, **how: Any) -> Rows:
    """Returns the rows of batches `(rows, …)` of a size each, of so many `tokens` a row each, for prompts so long."""
    longest = max(tokens)
    lengths = tuple(own for batch, own in zip(sizes, tokens, strict=True) for _ in batch)
    return Rows(lengths, longest + (longest == prompt), **how)


def filled(tensors: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Returns batches `(rows, tokens, …)` below each other, filled up with zeros to the longest, or to `length`."""
    rows = pad_sequence([row for batch in tensors for row in batch], batch_first=True)
    missing = 0 if length is None else length - rows.shape[1]
    return F.pad(rows, (*[0, 0] * (rows.ndim - 2), 0, missing)) if missing else rows


def strip(sample: Tensor, patch_size: int) -> Tensor:
    """Returns samples `(rows, channels, …, height, width)` as pictures one patch high, one patch a token.

    They are `(rows, channels, patch, tokens * patch)`, and what a denoiser makes of patches it makes of these.
    """
    rows, channels, *_, height, width = sample.shape
    patches = sample.reshape(rows, channels, -1, height // patch_size, patch_size, width // patch_size, patch_size)
    return patches.permute(0, 1, 4, 2, 3, 5, 6).reshape(rows, channels, patch_size, -1)


def strips(samples: Sequence[Tensor], patch_size: int, longest: int) -> Tensor:
    """Returns what `strip` makes of batches of a size each, below each other, filled up to `longest` tokens."""
    made = (strip(sample, patch_size) for sample in samples)
    return torch.cat([F.pad(own, (0, patch_size * longest - own.shape[-1])) for own in made])


def split(rows: Tensor, sizes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns rows `(rows of all sizes, …)` as those of each size."""
    return rows.split([len(batch) for batch in sizes])


def unstrip(strips: Tensor, like: Tensor, patch_size: int) -> Tensor:
    """Returns what `strip` made of samples of the shape of `like`, as such samples; what is behind them is left out."""
    rows, channels, *frames, height, width = like.shape
    grid = (*frames, height // patch_size, width // patch_size)
    tokens = 1
    for side in grid:
        tokens *= side
    columns = strips[..., : tokens * patch_size].reshape(
        rows, channels, patch_size, tokens * patch_size // width, width // patch_size, patch_size
    )
    return columns.permute(0, 1, 3, 2, 4, 5).reshape(rows, channels, *frames, height, width)
