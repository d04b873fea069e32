"""`python -m align_anything.testing.tiny <family> --out DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from align_anything.core.errors import ModelError
from align_anything.testing.tiny import KINDS, build


def main(argv: list[str] | None = None) -> int:
    """Builds one tiny checkpoint; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m align_anything.testing.tiny', description='Writes a tiny random checkpoint into a new folder.'
    )
    parser.add_argument('family', choices=sorted(KINDS), metavar='family', help=', '.join(sorted(KINDS)))
    parser.add_argument('--out', required=True, type=Path, help='folder to make')
    parser.add_argument('--hidden', type=int, default=64, help='width of the language model')
    parser.add_argument('--layers', type=int, default=2, help='layers of the language model')
    parser.add_argument('--heads', type=int, default=None, help='attention heads (default: 32 wide each)')
    parser.add_argument('--vocab', type=int, default=384, help='pieces of the tokenizer')
    parser.add_argument('--image_size', type=int, default=56, help='side of an image in pixels')
    parser.add_argument('--vision_hidden', type=int, default=32, help='width of the vision tower')
    parser.add_argument('--vision_layers', type=int, default=2, help='layers of the vision tower')
    parser.add_argument('--seed', type=int, default=0, help='seed of the weights')
    parser.add_argument('--corpus', type=Path, default=None, help='file of texts to train the tokenizer on')
    arguments = vars(parser.parse_args(argv))
    corpus = arguments.pop('corpus')
    try:
        lines = None if corpus is None else corpus.read_text(encoding='utf-8').splitlines()
        out = build(corpus=lines, **arguments)
    except (ModelError, OSError) as error:
        sys.stderr.write(f'{error}\n')
        return 1
    sys.stdout.write(f'{out}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
