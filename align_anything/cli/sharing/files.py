"""Which files of a folder belong to the model in it, and why the others are left out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from align_anything.core.files import read_json
from align_anything.engines.checkpoint import CARD_FILE, MANIFEST, STATE_FOLDER
from align_anything.models.declared_codes import CODECS
from align_anything.models.diffusion.checkpoint import INDEX
from align_anything.trainers.runs.checkpoints import EMA

WEIGHTS = '.safetensors', '.gguf'
KEPT = re.compile(
    # Of tokenizers and processors there are as many names as there are classes.
    r'.*config.*\.json|.*index\.json|tokenizer.*|.*tokens?_map.*\.json|added_tokens\.json|.*vocab.*\.(json|txt)|'
    r'merges\.txt|normalizer\.json|chat_template.*|(media_codes|scores|action_space)\.json|.*\.(model|tiktoken|jinja)|'
    r'(LICEN[CS]E|NOTICE|USE_POLICY)[^/]*'
)
REASONS = {
    r'.*\.(pem|key|p12|pfx|kdbx)|id_(rsa|ed25519|ecdsa|dsa)(\.pub)?|.*credential.*|.*secret.*|(hf_)?token': 'a key',
    r'(optimizer|scheduler|training_args)\.\w+|(rng_state|random_states).*|trainer_state\.json': 'state of a run',
    r'.*\.(pt|pth|bin|ckpt|pkl|pickle)': 'pickled, which runs code when it is loaded; save it as safetensors',
    r'.*\.(jsonl?|csv|tsv|parquet|arrow|gz|zip|tar|npy|npz)': 'data',
    r'.*\.(log|out|err)|events\.out\..*': 'a log',
    r'.*\.(png|jpe?g|gif|webp|svg|html|wav|mp3|mp4)': 'the card does not show it',
    r'.*\.py': 'no configuration here names code',
    r'.*\.ya?ml': 'settings of a run',
}
FOLDERS = {
    STATE_FOLDER: 'state of a run, the optimizer among it',
    EMA: 'averaged weights, a model of its own: push that folder to share it',
}


@dataclass(frozen=True)
class Listing:
    """The files of a folder: those of its model, and the others, folders among them, with the reason of each.

    Paths are relative to the folder.
    """

    folder: Path
    kept: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)

    def size(self, path: Path) -> int:
        """Bytes of a file, or of all below a folder."""
        there = self.folder / path
        if there.is_dir() and not there.is_symlink():
            return sum(file.lstat().st_size for file in there.rglob('*') if not file.is_dir())
        return there.stat().st_size if there.exists() else 0


def model_files(folder: Path) -> Listing:
    """Lists `folder`. What is kept is known as a model's: anything else, whatever it is, stays here."""
    listing = Listing(folder)
    components = _components(folder)
    card = (folder / CARD_FILE).read_text(encoding='utf-8') if (folder / CARD_FILE).is_file() else ''
    has_code = any('"auto_map"' in file.read_text(encoding='utf-8') for file in folder.glob('*config.json'))
    for path in _walk(folder, Path(), components):
        reason = _reason(folder, path, components, card, has_code)
        if reason:
            listing.left_out[path] = reason
        else:
            listing.kept.append(path)
    return listing


def _components(folder: Path) -> set[str]:
    """The folders of a model: the components of a pipeline, and codecs."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    return {name for name, origin in index.items() if isinstance(origin, list)} | {CODECS}


def _walk(folder: Path, inside: Path, components: set[str]) -> Iterator[Path]:
    """Yields files, and folders that are not gone into."""
    for entry in sorted(os.scandir(folder / inside), key=lambda entry: entry.name):
        path = inside / entry.name
        is_own = path.parts[0] in components and not entry.name.startswith('.')
        if entry.is_dir(follow_symlinks=False) and is_own:
            yield from _walk(folder, path, components)
        else:
            yield path


def _reason(folder: Path, path: Path, components: set[str], card: str, has_code: bool) -> str:
    """Why a file or a folder is left out; an empty text for one of the model."""
    there, name = folder / path, path.name
    if name.startswith('.'):
        return 'hidden'
    if there.is_symlink() and not _links_to_same_name(there):
        return 'a link to something of another name'
    if there.is_dir():
        return FOLDERS.get(name, 'no part of the model')
    if name == MANIFEST:
        return 'state of a run'
    if name == CARD_FILE or name.endswith(WEIGHTS) or (has_code and name.endswith('.py')):
        return ''
    told = next((reason for pattern, reason in REASONS.items() if re.fullmatch(pattern, name, re.IGNORECASE)), None)
    if told == 'the card does not show it' and f'({path.as_posix()})' in card:
        return ''
    # A secret or a state is one by whatever name; data and pictures are what no model's file is called like.
    if KEPT.fullmatch(name) and told in (None, 'data'):
        return ''
    return told or 'no file of a model that is known'


def _links_to_same_name(link: Path) -> bool:
    """Whether a link leads to a file of its name, or as in the hub's cache to one that a hash names."""
    target = link.resolve()
    return target.is_file() and (target.name == link.name or re.fullmatch('[0-9a-f]{40,64}', target.name) is not None)
