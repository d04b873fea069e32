"""The chat template of a language model, made to read media."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_anything.models.rendering import default_template

LISTS = (
    '{%- set told = namespace(messages=[]) -%}{%- for message in messages -%}'
    "{%- if message['content'] is string or not message['content'] -%}"
    '{%- set told.messages = told.messages + [message] -%}{%- else -%}'
    "{%- set written = namespace(text='') -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{%- set written.text = written.text + part['text'] -%}"
    '<media>'
    '{%- endif -%}{%- endfor -%}'
    '{%- set told.messages = told.messages + [dict(message, content=written.text)] -%}'
    '{%- endif -%}{%- endfor -%}{%- set messages = told.messages -%}'
)


def with_media(tokenizer: Any, written: Mapping[str, str]) -> str:
    """Returns the tokenizer's chat template, or the default one, for contents that are lists of parts too.

    `written` is the text that stands for a medium of each kind; a new line follows it.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get('default') or next(iter(own.values()))
    branches = ''.join(
        f"{{%- elif part['type'] == {kind!r} -%}}{{%- set written.text = written.text + {text + chr(10)!r} -%}}"
        for kind, text in written.items()
    )
    return LISTS.replace('<media>', branches) + (own or default_template(tokenizer))
