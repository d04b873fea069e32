"""What tells the encoding of one run, and the weights of one checkpoint, from those of another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from align_anything.models.export import forget_last_call
from align_anything.models.family import FamilySpec
from align_anything.models.spec import Spec

MEBIBYTE = 2**20
WEIGHTS = '.safetensors', '.bin', '.json'
PASSING = '_name_or_path', 'transformers_version', 'dtype'
"""Entries of a configuration that say where a checkpoint came from and how it is stored, not what it computes."""


def lasting_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Returns the entries of a configuration by which one model is told from another."""
    return {name: value for name, value in config.to_dict().items() if name not in PASSING}


def encoding_fingerprint(spec: Spec) -> str:
    """Returns a digest of everything in a spec that decides what it encodes a conversation into.

    That is its class, the configuration of the model, the longest length, the chat template and the stop tokens in
    force, the space of what acts, and whatever the tokenizer and the
    processor save of themselves: vocabulary, settings, code of their own.
    """
    known = _of_tokens(spec) if spec.unit == 'token' else []
    known += [] if spec.space is None else [spec.space.to_json()]
    known += [type(spec).__qualname__, type(spec.tokenizer).__qualname__, lasting_settings(spec.config)]
    known.append(spec.max_length)
    if spec.codes is not None:
        codes = spec.codes
        codecs = {kind: rules.fingerprint for kind, rules in codes.rules.items()}
        known += [codecs, codes.restricted, codes.begins, dict(codes.weights)]
    digest = hashlib.blake2b(json.dumps(known, sort_keys=True, default=str).encode(), digest_size=20)
    with TemporaryDirectory() as name:
        folder = Path(name)
        forget_last_call(spec.tokenizer)
        (spec.processor or spec.tokenizer).save_pretrained(folder)
        for file in sorted(path for path in folder.rglob('*') if path.is_file()):
            digest.update(f'{file.relative_to(folder)}\n'.encode() + file.read_bytes())
    return digest.hexdigest()


def _of_tokens(spec: FamilySpec) -> list[Any]:
    kinds = [type(part).__qualname__ for part in (spec.encoder, spec.processor)]
    return [kinds, spec.renderer.template, spec.stop_token_ids]


def weights_fingerprint(source: str | Path) -> str:
    """Returns a digest that tells the weights of a checkpoint, a folder or a hub name, from others.

    Files count by name, size, time of change and their first and last mebibyte, so that large ones need not be read.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(cached_file(str(source), 'config.json')).parent
    digest = hashlib.blake2b(digest_size=20)
    for path in sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS):
        status = path.stat()
        digest.update(f'{path.name} {status.st_size} {status.st_mtime_ns}\n'.encode())
        with path.open('rb') as file:
            digest.update(file.read(MEBIBYTE))
            file.seek(max(0, status.st_size - MEBIBYTE))
            digest.update(file.read())
    return digest.hexdigest()
