"""Gives a language model the tokens of codecs, so that it can learn to write their media."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AddedToken, PreTrainedModel

from align_anything.core.errors import ModelError
from align_anything.core.files import new_folder
from align_anything.core.types import MediaKind
from align_anything.models.adapter import bare_model, find_adapter
from align_anything.models.any_model import AnyModel
from align_anything.models.checkpoint import stored_tensor
from align_anything.models.codecs.base import CodecRules, codec_rules
from align_anything.models.codes import MediaCodes
from align_anything.models.declared_codes import CODECS, declared_codes, make_codes, write_declaration
from align_anything.models.export import export_model
from align_anything.models.pretrained_model import load_spec

MULTIPLE = 64
"""What the number of rows of an embedding is rounded up to, which hardware likes."""


def add_media_tokens(
    source: str | Path,
    codecs: Mapping[MediaKind, str | Path],
    out: str | Path,
    *,
    sizes: Mapping[MediaKind, Sequence[int]] | None = None,
    max_lengths: Mapping[MediaKind, int] | None = None,
    around: Mapping[MediaKind, tuple[str, str]] | None = None,
) -> Path:
    """Writes a checkpoint with tokens for the codes of `codecs`, and these beside it, into `out`; returns that folder.

    The embedding grows to a multiple of 64 rows; new ones begin as the mean of the others. `config.json` says where the
    codes stand. `sizes` are the grids that media of a kind always have, by default the one that a codec makes of all
    pictures, where there is one; `max_lengths` are most tokens of a medium, and `around` the tokens before and behind
    it, `<|image_begin|>` and `<|image_end|>` by default.

    Raises ModelError for a checkpoint, a codec or a folder that cannot be used, for kinds that it has codes of, and for
    what is said of kinds that no codec is given of, or does not fit its codec.
    """
    for what, given in (('size', sizes), ('max_length', max_lengths), ('around', around)):
        stray = sorted(set(given or {}) - set(codecs))
        if stray:
            raise ModelError(f'{what} of {stray[0]}: no codec of {stray[0]} is given.')
    spec = load_spec(source, model_max_length=None)
    known = sorted(spec.emits & set(codecs))
    known_rules = {} if spec.codes is None else spec.codes.rules
    if known:
        raise ModelError(f'{source} has codes of {known[0]} media already.')
    rules = {kind: codec_rules(folder) for kind, folder in codecs.items()}
    declared: dict[str, Any] = dict(declared_codes(spec.config) or {})
    for kind, codec in rules.items():
        if codec.kind != kind:
            raise ModelError(f'{codec.folder} is a codec of {codec.kind}, not of {kind}.')
        size = _size(codec, (sizes or {}).get(kind))
        declared[kind] = {
            'codec': f'{CODECS}/{kind}',
            **_added(spec.tokenizer, kind, codec, (around or {}).get(kind)),
            **({} if size is None else {'size': list(size)}),
            **({'max_length': max_lengths[kind]} if max_lengths and kind in max_lengths else {}),
        }
    with_codecs = {
        kind: {**own, 'codec': str(rules[kind].folder.resolve())} for kind, own in declared.items() if kind in rules
    }
    make_codes(with_codecs, '', spec.tokenizer, len(spec.tokenizer))
    model = AnyModel.from_pretrained(source)
    enlarge(model, len(spec.tokenizer))
    with new_folder(out) as folder:
        export_model(model, None, folder, tokenizer=spec.tokenizer, processor=spec.processor)
        write_declaration(folder, declared, {**known_rules, **rules})
    return Path(out)


def only_size(rules: CodecRules) -> tuple[int, ...] | None:
    """Returns the grid that all pictures have in codes, None where it differs with theirs, and for other media."""
    if rules.kind != 'image':
        return None
    grids = {rules.grid(Image.new('RGB', size)) for size in ((256, 256), (512, 256))}
    return grids.pop() if len(grids) == 1 else None


def _size(rules: CodecRules, wanted: Sequence[int] | None) -> tuple[int, ...] | None:
    made = only_size(rules)
    if wanted is not None and made not in (None, tuple(wanted)):
        raise ModelError(f'{rules.folder} makes {list(made)} codes of every {rules.kind}, not {list(wanted)}.')
    return made if wanted is None else tuple(wanted)


def enlarge(model: PreTrainedModel, tokens: int) -> None:
    """Gives a model rows for so many tokens at least; new rows begin as the mean of the others."""
    before = model.get_input_embeddings().weight.shape[0]
    if tokens <= before:
        return
    model.resize_token_embeddings(tokens, pad_to_multiple_of=MULTIPLE, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            for weight in _rows_of(module):
                weight[before:] = weight[:before].float().mean(0).to(weight.dtype)


def require_told_apart(
    model: nn.Module,
    codes: MediaCodes | None,
    model_name_or_path: str | Path,
    *,
    read: Collection[MediaKind],
    written: Collection[MediaKind],
) -> None:
    """Raises ModelError where all codes of a book have one embedding in a checkpoint, and keep it.

    New tokens begin so. A model that leaves them as they are, as under LoRA, can never tell codes apart.

    Args:
        model: as it trains, on any device; only what is frozen in it is looked up in the checkpoint.
        codes: those of its family, None for none.
        model_name_or_path: the checkpoint, or an adapter of it.
        read: kinds of media that may stand in its sequences.
        written: those among them that it learns to write, for which its output embedding matters too.
    """
    if codes is None or codes.separate:
        return
    adapter, plain = find_adapter(model_name_or_path), bare_model(model)
    source = model_name_or_path if adapter is None else adapter.require_base()
    kinds_of = {
        plain.get_input_embeddings(): {*read} & {*codes.kinds},
        plain.get_output_embeddings(): {*written} & {*codes.kinds},
    }
    frozen = {
        name: kinds_of[module]
        for name, module in plain.named_modules()
        if kinds_of.get(module) and not any(parameter.requires_grad for parameter in module.parameters())
    }
    for name, kinds in frozen.items():
        rows = stored_tensor(source, f'{name}.weight')
        for kind in () if rows is None else sorted(kinds):
            if any(bool((rows[start:stop] == rows[start]).all()) for start, stop in codes.kinds[kind].spans):
                modules = ' '.join(each.rpartition('.')[2] for each in frozen)
                raise ModelError(
                    f'the codes of {kind} media are new to {source}: all have the same row in {name}, which this run '
                    'leaves as it is, so that it could never tell them apart. Train it, under LoRA by '
                    f'--modules_to_save {modules}, or train without LoRA first.'
                )


def _rows_of(module: nn.Module) -> list[torch.Tensor]:
    return [parameter for _, parameter in module.named_parameters(recurse=False)]


def _added(tokenizer: Any, kind: MediaKind, codec: CodecRules, around: tuple[str, str] | None = None) -> dict[str, Any]:
    """Adds the tokens of a codec; returns what is declared of them."""
    opening, closing = around or (f'<|{kind}_begin|>', f'<|{kind}_end|>')
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in (opening, closing)], True)
    first = []
    for book, size in enumerate(codec.books):
        names = [f'<|{kind}_{book}_{number}|>' for number in range(size)]
        tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
        ids = tokenizer.convert_tokens_to_ids(names)
        if ids != list(range(ids[0], ids[0] + size)):
            raise ModelError(f'the tokenizer has some of the tokens {names[0]} to {names[-1]} already.')
        first.append(ids[0])
    return {'first_ids': first, 'opening': opening, 'closing': closing}
