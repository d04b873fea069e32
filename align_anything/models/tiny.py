"""The tiny checkpoints of `align_anything.testing.tiny`, where earlier releases had them."""

import sys

from align_anything.testing.tiny import KINDS, build
from align_anything.testing.tiny.__main__ import main

__all__ = ['KINDS', 'build', 'main']

if __name__ == '__main__':
    sys.exit(main())
