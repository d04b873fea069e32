"""A tiny composed model: CLIP and Wav2Vec2 beside a Llama, videos frame by frame."""

from __future__ import annotations

import tempfile
from pathlib import Path

from align_anything.configs.compose import read_compose
from align_anything.models.composed.compose import compose
from align_anything.testing.tiny import text
from align_anything.testing.tiny.encoders import build_encoder
from align_anything.testing.tiny.options import TinyOptions


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny composed model, with the sizes of the language model that were asked for."""
    with tempfile.TemporaryDirectory(prefix='parts-') as name:
        parts = Path(name)
        sizes = {key: getattr(options, key) for key in ('hidden', 'layers', 'vocab', 'heads', 'seed', 'corpus')}
        text.build(TinyOptions('llama', **sizes), parts / 'llama')
        made_of = {
            'language_model': str(parts / 'llama'),
            'image': str(build_encoder('clip', parts / 'clip', options.seed)),
            'audio': str(build_encoder('wav2vec2', parts / 'wav2vec2', options.seed)),
            'video': {
                'encoder': 'frames',
                'select': 'patch',
                'projector': 'transformer',
                'num_tokens': 8,
                'num_heads': 2,
            },
            'seed': options.seed,
        }
        compose(read_compose(made_of, 'parts'), out)
