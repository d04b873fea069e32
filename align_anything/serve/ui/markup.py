"""Bits of HTML that the page is made of. Whatever comes from data, models and logs is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

VERDICTS = {'Fits: ': 'good', 'Does not fit: ': 'bad'}


def problems_html(problems: Sequence[str], notes: Sequence[str] = ()) -> str:
    """Returns what is wrong, a line each, and what should be known otherwise; nothing where there is neither."""
    wrong = ''.join(f'<li>{escape(problem)}</li>' for problem in problems)
    told = ''.join(f'<li>{escape(note)}</li>' for note in notes)
    return (f'<ul class="problems">{wrong}</ul>' if wrong else '') + (f'<ul class="notes">{told}</ul>' if told else '')


def good_html(text: str) -> str:
    """Returns a sentence that all is well."""
    return f'<p class="good">{escape(text)}</p>'


def log_html(text: str) -> str:
    """Returns what a program said, as it said it."""
    return f'<div class="tail"><pre class="log">{escape(text)}</pre></div>' if text else ''


def verdict_html(text: str) -> str:
    """Returns the verdict on memory in what a dry run said, with what it says would take less; nothing without one."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        for beginning, style in VERDICTS.items():
            if line.startswith(beginning):
                more = []
                for following in lines[number + 1 :]:
                    if not following.startswith(('  --', 'Even so')):
                        break
                    more.append(following)
                return f'<pre class="verdict {style}">{escape(chr(10).join([line, *more]))}</pre>'
    return ''


def table_html(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns rows of equal columns as a table; nothing without rows."""
    if not rows:
        return ''
    head = ''.join(f'<th>{escape(name)}</th>' for name in rows[0])
    body = ''.join(f'<tr>{"".join(f"<td>{escape(cell)}</td>" for cell in row.values())}</tr>' for row in rows)
    return f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def facts_html(facts: Mapping[str, str]) -> str:
    """Returns names and what they stand for, a line each."""
    rows = ''.join(f'<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in facts.items())
    return f'<table class="facts">{rows}</table>'
