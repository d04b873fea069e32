"""`python -m align_anything.testing.tiny <name> --out DIR`: a model, an encoder or a codec."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from align_anything.core.errors import ModelError
from align_anything.core.files import new_folder
from align_anything.testing.codecs import CLASSES, make_codec
from align_anything.testing.tiny import ACTING, KINDS, PIPELINES, build
from align_anything.testing.tiny.encoders import ENCODERS, build_encoder

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
}


def main(argv: list[str] | None = None) -> int:
    """Builds one tiny checkpoint; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m align_anything.testing.tiny',
        description='Writes a tiny random checkpoint into a new folder: a model, an encoder of media for '
        '`align-anything compose`, or a codec for `align-anything add-media-tokens`.',
        argument_default=argparse.SUPPRESS,
    )
    models_of = KINDS | PIPELINES | ACTING
    kinds = {
        'models': KINDS,
        'models that act': ACTING,
        'pipelines': PIPELINES,
        'encoders': ENCODERS,
        'codecs': CLASSES,
    }
    named = '; '.join(f'{kind}: {_listed(names)}' for kind, names in kinds.items())
    parser.add_argument('name', choices=[*models_of, *ENCODERS, *CLASSES], metavar='name', help=named)
    parser.add_argument('--out', required=True, type=Path, help='folder to make')
    parser.add_argument('--seed', type=int, help='seed of the weights')
    models = parser.add_argument_group('of models')
    for name, what in SIZES.items():
        models.add_argument(f'--{name}', type=int, help=what)
    models.add_argument(
        '--template',
        help='published checkpoint in whose manner a text family chats, such as qwen3, whose template writes tools',
    )
    models.add_argument('--corpus', type=Path, help='file of texts to train the tokenizer on')
    options = vars(parser.parse_args(argv))
    name, out = options.pop('name'), options.pop('out')
    stray = sorted(options.keys() - {'seed'})
    if name not in models_of and stray:
        parser.error(f'--{stray[0]} is an option of models, and {name} is none; leave it out.')
    try:
        if name in models_of:
            if 'corpus' in options:
                options['corpus'] = options['corpus'].read_text(encoding='utf-8').splitlines()
            build(name, out, **options)
        else:
            with new_folder(out) as folder:
                (build_encoder if name in ENCODERS else make_codec)(name, folder, **options)
    except (ModelError, OSError) as error:
        sys.stderr.write(f'{error}\n')
        return 1
    sys.stdout.write(f'{out}\n')
    return 0


def _listed(names: Iterable[str]) -> str:
    return ', '.join(sorted(names))


if __name__ == '__main__':
    sys.exit(main())
