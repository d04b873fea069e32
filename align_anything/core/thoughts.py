"""The tags that open a thought."""

from __future__ import annotations

import re

OPENED = re.compile(r'[<\[◁]\|?(?!end)[\w:]*(?:think|thought|reason)\w*\|?[>\]▷]\s*\Z', re.IGNORECASE)


def opened_thought(text: str) -> str:
    """Returns the tag at the end of a text that opens a thought, with the white space behind it; empty without one.

    Such as `<think>\n`, `<reasoning>`, `[THINK]`, `<|START_THINKING|>`.
    """
    found = OPENED.search(text)
    return found.group() if found else ''
