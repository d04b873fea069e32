"""`python -m align_anything.testing.tiny <family> --out DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from align_anything.core.errors import ModelError
from align_anything.testing.tiny import KINDS, PIPELINES, build

SIZES = {
    'hidden': 'width of the language model or denoiser',
    'layers': 'layers of the language model or denoiser',
    'factor': 'of a pipeline, pixels of a side for one latent',
    'positions': 'of a pipeline, most tokens of a prompt for CLIP encoders',
    'heads': 'attention heads (default: 32 wide each)',
    'vocab': 'pieces of the tokenizer',
    'image_size': 'side of an image in pixels',
    'vision_hidden': 'width of the vision tower',
    'vision_layers': 'layers of the vision tower',
    'seed': 'seed of the weights',
}


def main(argv: list[str] | None = None) -> int:
    """Builds one tiny checkpoint; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m align_anything.testing.tiny', description='Writes a tiny random checkpoint into a new folder.'
    )
    names = KINDS | PIPELINES
    parser.add_argument('family', choices=sorted(names), metavar='family', help=', '.join(sorted(names)))
    parser.add_argument('--out', required=True, type=Path, help='folder to make')
    for name, what in SIZES.items():
        parser.add_argument(f'--{name}', type=int, default=None, help=what)
    parser.add_argument('--template', default=None, help='published checkpoint in whose manner a text family chats')
    parser.add_argument('--corpus', type=Path, default=None, help='file of texts to train the tokenizer on')
    arguments = vars(parser.parse_args(argv))
    corpus = arguments.pop('corpus')
    try:
        lines = None if corpus is None else corpus.read_text(encoding='utf-8').splitlines()
        given = {name: value for name, value in arguments.items() if value is not None}
        out = build(corpus=lines, **given)
    except (ModelError, OSError) as error:
        sys.stderr.write(f'{error}\n')
        return 1
    sys.stdout.write(f'{out}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
