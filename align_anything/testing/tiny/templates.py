"""Chat templates in the manner of the families' own.

transformers compiles templates with `trim_blocks`: a bare newline after a block tag disappears, so text stands in
expressions.
"""

from __future__ import annotations

from collections.abc import Mapping

BOS = '{{ bos_token }}'
PLAIN = "{{ message['content'] }}"


def _put(text: str) -> str:
    return '{{ ' + repr(text) + ' }}' if text else ''


def content(media: Mapping[str, str]) -> str:
    """Returns the Jinja that writes `message['content']`, a string or a list of parts, media as their placeholders."""
    branches = ''.join(f"{{% elif part['type'] == '{kind}' %}}{_put(text)}" for kind, text in media.items())
    return (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}" + branches + '{% endif %}{% endfor %}{% endif %}'
    )


def turns(
    opening: str,
    closing: str,
    body: str = PLAIN,
    *,
    start: str = '',
    roles: Mapping[str, str] | None = None,
    generation: str | None = None,
) -> str:
    """Returns a template that writes `opening body closing` for every message.

    Args:
        opening, closing: text around a message; `{role}` stands for its role.
        body: Jinja that writes the content.
        start: Jinja before the first message.
        roles: names of roles that the template spells otherwise.
        generation: what opens an answer; `opening` for the assistant by default.
    """
    before, after = opening.split('{role}')
    spelled = dict(roles or {})
    role = f"{{{{ {spelled!r}.get(message['role'], message['role']) }}}}"
    if generation is None:
        generation = before + spelled.get('assistant', 'assistant') + after
    return (
        start
        + '{% for message in messages %}'
        + (_put(before) + role + _put(after))
        + (body + _put(closing))
        + '{% endfor %}{% if add_generation_prompt %}'
        + (_put(generation) + '{% endif %}')
    )


CHATML_OPENING, CHATML_CLOSING = '<|im_start|>{role}\n', '<|im_end|>\n'


def chatml(body: str = PLAIN) -> str:
    """Returns the template of Qwen and others."""
    return turns(CHATML_OPENING, CHATML_CLOSING, body)


def llama(body: str) -> str:
    """Returns Llama 3's template."""
    return turns('<|start_header_id|>{role}<|end_header_id|>\n\n', '<|eot_id|>', body, start=BOS)


def gemma(body: str, opening: str = '<start_of_turn>{role}\n', closing: str = '<end_of_turn>\n') -> str:
    """Returns Gemma's template, which calls the assistant `model`."""
    return turns(opening, closing, body, start=BOS, roles={'assistant': 'model'})


def idefics() -> str:
    """Returns the template of Idefics."""
    roles = {'user': 'User', 'assistant': 'Assistant', 'system': 'System'}
    return turns('{role}: ', '<end_of_utterance>\n', content({'image': '<image>'}), start=BOS, roles=roles)


VISUALS_FIRST = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA's habit: parts only, images and videos before text, no token that ends an answer."""
