"""What watches a training."""

from __future__ import annotations

from align_anything.reporting.callbacks import Callback

__all__ = ['Callback']
