"""Raw rows to conversations: formatters, media, sources, samplers and loaders."""

from __future__ import annotations

from align_anything.datasets.formatters.base import BaseFormatter, get_template, make_formatter, register_template

__all__ = ['BaseFormatter', 'get_template', 'make_formatter', 'register_template']
