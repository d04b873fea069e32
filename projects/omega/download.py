"""Downloads the base model and the datasets from the Hugging Face hub.

python download.py [NAME ...] [--shards 8] [--source FOLDER] [--dry-run]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

HELD_OUT = Path('ds/held_out')


@dataclass(frozen=True)
class Wanted:
    """A repository of the hub, the files of it that are wanted, and the folder that they go to."""

    repo_id: str
    folder: Path
    files: tuple[str, ...]
    kind: str = 'dataset'


def dataset(repo_id: str, name: str, *files: str) -> Wanted:
    """Returns what is wanted of a dataset that goes to `ds/<name>`."""
    return Wanted(repo_id, Path('ds') / name, files)


# The files that the trainer reads; the weights in Meta's own format (original/) are left out.
MODEL_FILES = ('*.json', '*.safetensors')
WANTED = {
    'base_model': Wanted(
        'meta-llama/Meta-Llama-3-8B-Instruct', Path('checkpoints/Meta-Llama-3-8B-Instruct'), MODEL_FILES, 'model'
    ),
    'omega_multimodal': dataset('omegalabsinc/omega-multimodal', 'omega_multimodal', 'default/train/*.parquet'),
    **{
        name: dataset(f'nimapourjafar/{name}', name, 'output.parquet')
        for name in ('coco_llava_instruct', 'vision_flan', 'sam_llava')
    },
    'bagel': dataset('jondurbin/bagel-llama-3-v1.0', 'bagel', 'bagel-input-output-v1.0.parquet'),
}
IN_SHARDS = 'omega_multimodal'


def listed(wanted: Wanted, source: Path | None) -> list[str]:
    """Returns the files of a repository that are wanted, sorted. Raises FileNotFoundError where there are none."""
    if source is None:
        from huggingface_hub import HfApi

        names = HfApi().list_repo_files(wanted.repo_id, repo_type=wanted.kind)
    else:
        home = source / wanted.repo_id
        names = [path.relative_to(home).as_posix() for path in home.rglob('*') if path.is_file()]
    # A star stands for no folder: what lies deeper is asked for by its folder.
    found = sorted(
        name
        for name in names
        for pattern in wanted.files
        if fnmatch(name, pattern) and name.count('/') == pattern.count('/')
    )
    if not found:
        raise FileNotFoundError(f'{wanted.repo_id} has none of the files {", ".join(wanted.files)}')
    return found


def chosen(name: str, files: Sequence[str], shards: int) -> list[tuple[str, Path]]:
    """Returns the files to fetch and their folders.

    The names of shards begin with the time that they were made at: the newest are taken, and the one before them is
    held out. Raises FileNotFoundError where there are too few.
    """
    folder = WANTED[name].folder
    if name != IN_SHARDS:
        return [(file, folder) for file in files]
    if len(files) < 2:
        raise FileNotFoundError(f'{WANTED[name].repo_id} has one shard only, and one is held out')
    newest = files[-shards - 1 :]
    return [(newest[0], HELD_OUT / name), *((file, folder) for file in newest[1:])]


def fetch(wanted: Wanted, file: str, folder: Path, source: Path | None) -> None:
    """Brings one file of a repository into a folder, under its own name there."""
    if source is None:
        from huggingface_hub import hf_hub_download

        hf_hub_download(wanted.repo_id, file, repo_type=wanted.kind, local_dir=folder)
    else:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / wanted.repo_id / file, target)


def main(argv: Sequence[str] | None = None) -> None:
    """Downloads what the options name."""
    parser = argparse.ArgumentParser(description='Downloads the base model and the datasets of OMEGA.')
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'what to download: {", ".join(WANTED)}; default all')
    parser.add_argument('--shards', type=int, default=8, help=f'newest shards of {IN_SHARDS} to train on')
    parser.add_argument(
        '--source', type=Path, help='folder with the repositories by their names (owner/name), instead of the hub'
    )
    parser.add_argument('--dry-run', action='store_true', help='list the files, and fetch none')
    given = parser.parse_args(argv)
    unknown = [name for name in given.names if name not in WANTED]
    if unknown or given.shards < 1:
        parser.error(f'there is no {unknown[0]}' if unknown else '--shards must be 1 or more')
    for name in given.names or WANTED:
        wanted = WANTED[name]
        try:
            for file, folder in chosen(name, listed(wanted, given.source), given.shards):
                print(f'{wanted.repo_id}/{file} -> {folder / file}')
                if not given.dry_run:
                    fetch(wanted, file, folder, given.source)
        # What huggingface_hub raises without a network, a login or access derives from OSError.
        except OSError as error:
            parser.exit(1, f'{wanted.repo_id}: {error}\nLog in with `hf auth login`, with access to this repository.\n')


if __name__ == '__main__':
    main(sys.argv[1:])
