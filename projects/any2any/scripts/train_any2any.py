"""Trains a model that writes images or audio as tokens: the same as train_multimodal.py, by another name.

python scripts/train_any2any.py configs/any2any/anygpt_style_training.yaml
"""

from __future__ import annotations

from train_multimodal import main

if __name__ == '__main__':
    main()
