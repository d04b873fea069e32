"""A language model that sees and hears: CLIP and CLAP beside a Llama, as one composed checkpoint.

python projects/any_to_text/build_llama_vision_audio.py --save_path Any2Text/llama_vision_audio
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from align_anything.cli.main import main as align_anything

LANGUAGE_MODEL = 'meta-llama/Meta-Llama-3.1-8B-Instruct'
VISION_TOWER = 'openai/clip-vit-large-patch14-336'
AUDIO_TOWER = 'laion/clap-htsat-fused'


def main(argv: Sequence[str] | None = None, audio: bool = True) -> None:
    """Composes the model that the options name; without `audio` it is a LLaVA."""
    name = 'llama_vision_audio' if audio else 'llama_vision'
    parser = argparse.ArgumentParser(description=f'Makes {name} out of its parts, folders or hub names.')
    parser.add_argument('--language_model_path', default=LANGUAGE_MODEL, help='the language model')
    parser.add_argument('--vision_tower_path', default=VISION_TOWER, help='the encoder of images')
    if audio:
        parser.add_argument('--audio_tower_path', default=AUDIO_TOWER, help='the encoder of audio')
    parser.add_argument('--save_path', default=f'Any2Text/{name}', help='folder to make')
    given = parser.parse_args(argv)
    words = ['compose', '--language_model', given.language_model_path, '--image', given.vision_tower_path]
    words += ['--audio', given.audio_tower_path] if audio else []
    align_anything([*words, '--out', given.save_path])


if __name__ == '__main__':
    main(sys.argv[1:])
