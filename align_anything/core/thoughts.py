"""How answers hold a thought: the keys of a turn, and the tags that open one."""

from __future__ import annotations

import re

KEYS = ('reasoning_content', 'thinking', 'reasoning')
"""Names of the thought of a turn in data and in chat templates; the first is ours."""
OPENED = re.compile(
    r'(?P<begin>[<\[◁]\|?)(?!end)(?P<name>[\w:]*(?:think|thought|reason)\w*)(?P<end>\|?[>\]▷])\s*\Z', re.IGNORECASE
)
_BEGINS = re.compile(r'(start|begin)(?=_)', re.IGNORECASE)


def opened_thought(text: str) -> str:
    """Returns the tag at the end of a text that opens a thought, with the white space behind it; empty without one.

    Such as `<think>\n`, `<reasoning>`, `[THINK]`, `<|START_THINKING|>`.
    """
    found = OPENED.search(text)
    return found.group() if found else ''


def closing_of(opened: str) -> str:
    """Returns the tag that closes a thought which `opened_thought` found open, such as `</think>`.

    Tags that say that they begin have one that says `end`: `<|START_THINKING|>` is closed by `<|END_THINKING|>`.
    """
    tag = OPENED.search(opened)
    name, begins = tag['name'], _BEGINS.match(tag['name'])
    if begins is None:
        return f'{tag["begin"]}/{name}{tag["end"]}'
    end = 'END' if begins[1].isupper() else 'end'
    return f'{tag["begin"]}{end}{name[begins.end() :]}{tag["end"]}'
