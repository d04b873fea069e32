"""What the site of docs/ changes in pages: links to files that are not part of it become plain text."""

from __future__ import annotations

import re
from typing import Any

_LINK = re.compile(r'\[([^\]]+)\]\(\s*\.\./[^)]*\)')


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the text of each page. Pages in a folder link to those above it."""
    return markdown if '/' in page.file.src_uri else _LINK.sub(r'\1', markdown)
