"""`python -m scripts.bench [text image dpo loss … all] [--quick]` measures, prints, exits 1 on a FAIL."""

from __future__ import annotations

import os

# Before torch is imported, and the same for both sides of every ratio.
os.environ.update(OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false', HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1')
os.environ.setdefault('DS_ACCELERATOR', 'cpu')
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

from scripts.bench import (  # noqa: E402
    acting,
    coded,
    compare,
    denoise,
    episodes,
    generate,
    long_row,
    loss,
    media,
    mixed,
    online,
    own_pace,
    pictures,
    preference,
    serve,
    startup,
)
from scripts.bench.report import Ratio, say, show  # noqa: E402
from scripts.bench.work import FULL, QUICK, Size  # noqa: E402

BENCHES: dict[str, Callable[[Path, Size], list[Ratio]]] = {
    'startup': startup.startup,
    'loss': loss.loss,
    'codes': loss.ranges,
    'text': compare.text,
    'image': compare.image,
    'emu3': coded.emu3,
    'dpo': preference.dpo,
    'dpo_image': preference.dpo_image,
    'rm': preference.rm,
    'shared': preference.shared,
    'grpo': online.grpo,
    'online': online.online,
    'grpo_step': online.grpo_step,
    'episodes': episodes.episodes,
    'environments': acting.environments,
    'own_pace': own_pace.own_pace,
    'pictures': pictures.pictures,
    'sampling': pictures.sampling,
    'generate': generate.generate,
    'serve': serve.serve,
    'denoise': denoise.denoise,
    'denoise_tiny': denoise.denoise_tiny,
    'denoise_dpo': denoise.denoise_dpo,
    'denoise_grpo': denoise.denoise_grpo,
    'media': media.media,
    'mixed': mixed.mixed,
    'long_row': long_row.long_row,
}


def main() -> int:
    """Runs the benchmarks asked for and returns the exit code."""
    parser = argparse.ArgumentParser(prog='python -m scripts.bench', description=__doc__)
    parser.add_argument('names', nargs='*', choices=[*BENCHES, 'all'], default='all', help='what to measure')
    parser.add_argument('--quick', action='store_true', help='tiny sizes, one round: shows that it runs, no more')
    parser.add_argument('--json', type=Path, help='also write the ratios to this file')
    args = parser.parse_args()
    # Without names argparse gives the default as it is, and holds it against the choices: a text, not a list.
    names = list(BENCHES) if 'all' in args.names else args.names
    ratios: list[Ratio] = []
    with tempfile.TemporaryDirectory(prefix='bench_') as folder:
        for name in names:
            say(f'{name}:')
            place = Path(folder) / name
            place.mkdir()
            for ratio in BENCHES[name](place, QUICK if args.quick else FULL):
                show(ratio)
                ratios.append(ratio)
    if args.json:
        args.json.write_text(json.dumps([ratio.record() for ratio in ratios], indent=2) + '\n', encoding='utf-8')
    failed = [ratio for ratio in ratios if not ratio.passed]
    say(f'{len(ratios) - len(failed)} of {len(ratios)} targets met')
    # Tiny sizes show nothing about speed, only that everything runs.
    return 1 if failed and not args.quick else 0


if __name__ == '__main__':
    sys.exit(main())
