"""A language model that sees: CLIP beside a Llama, as a LLaVA.

python projects/any_to_text/build_llama_vision.py --save_path Any2Text/llama_vision
"""

from __future__ import annotations

import sys

from build_llama_vision_audio import main

if __name__ == '__main__':
    main(sys.argv[1:], audio=False)
