"""The normal form of a conversation: every content a list of parts, every medium in its position."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from align_anything.core import thoughts
from align_anything.core.actions import STATE
from align_anything.core.errors import SampleError
from align_anything.core.types import ACTION, MEDIA_KINDS, Conversation, Media, MediaKind, Message
from align_anything.datasets.media import make_media
from align_anything.datasets.media.sources import is_frame
from align_anything.datasets.spoken_actions import actions_of, require_one_kind, state_of
from align_anything.datasets.tool_calls import calls_of, tools_of
from align_anything.datasets.turn_keys import (
    CALLS,
    MEDIA_KEYS,
    filled,
    is_empty_record,
    listed,
    media_of_turn,
    refuse_unheeded,
    source_keys,
    weight_of,
)

ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
PLACEHOLDER = re.compile('<(' + '|'.join(MEDIA_KINDS) + ')>')
PART_TYPES = {name: kind for kind in MEDIA_KINDS for name in (kind, f'{kind}_url')}

PART_OPTIONS: dict[str, dict[str, str]] = {
    'image': {'min_pixels': 'min_image_pixels', 'max_pixels': 'max_image_pixels'},
    'video': {
        **{name: name for name in ('num_frames', 'fps', 'min_frames', 'max_frames')},
        'nframes': 'num_frames',
        'min_pixels': 'min_frame_pixels',
        'max_pixels': 'max_frame_pixels',
        'total_pixels': 'max_video_pixels',
    },
    'audio': {name: name for name in ('max_seconds', 'sampling_rate')},
}
"""Keys of a media part that say how it is decoded, and the options they become."""
HINTS = ('detail',)
"""Keys of a media part that say to a hosted service how closely to look; a checkpoint's processor decides it here."""

NOTES = ('annotations', 'cache_control')
"""Keys of a text part that hosted services write or read, and that say nothing about the text."""

Part = dict[str, Any]
MediaMaker = Callable[[MediaKind, Any], Media]


def bind_media(
    conversation: Sequence[Mapping[str, Any]],
    meta: Mapping[str, Any],
    folders: Mapping[str, str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    needs_reply: bool = True,
) -> Conversation:
    """Returns the conversation in normal form, with the media of `meta` put where their placeholders stand.

    A placeholder is a part `{'type': kind}`, or `<kind>` in text when `meta` or the turn itself has that kind. Media
    without any placeholder go before the first user text, those of a turn before its own. Empty system turns are left
    out, and so is what follows the last answer. A turn whose tokens count otherwise than once has a `weight`. An
    assistant turn acts by parts `{'type': 'action', 'action': …}`, see `actions_of`; user turns may have the `state` of
    a body.

    Args:
        conversation: messages with text or parts, as a formatter returns them; not changed.
        meta: media under `image` or `images` (likewise the other kinds): one, a list, or none. One with options of its
            own is a `Media`. Under `tools`, the tools that may be called, a list or its JSON text; the first turn of
            the conversation gets them.
        folders: where relative paths of a kind start.
        options: what decoding a kind should heed, such as `{'image': {'max_pixels': 1_000_000}}`.
        needs_reply: whether there must be an assistant turn; a prompt alone must end with another turn, or with the
            beginning of the answer, a last assistant turn marked `'prefix': True`.

    Raises:
        SampleError: unknown role, malformed part, a key of a turn that nothing reads, empty turn, no or empty answer,
            or placeholders and media that differ in number.
    """
    folders, options = folders or {}, options or {}
    waiting = {kind: _waiting(meta, kind) for kind in MEDIA_KINDS if {kind, f'{kind}s'} & meta.keys()}

    def media_of(kind: MediaKind, source: Any) -> Media:
        # A frame of a video lies where videos do.
        held = source.source if isinstance(source, Media) else source
        start = 'video' if is_frame(held) else kind
        return make_media(kind, source, folders.get(start, ''), options.get(kind))

    messages = [_message(index, message, waiting.keys(), media_of) for index, message in enumerate(conversation)]
    contents = [message['content'] for message in messages]
    asked = [message['content'] for message in messages if message['role'] != 'assistant']
    first = next((message['content'] for message in messages if message['role'] == 'user'), None)
    for kind in MEDIA_KINDS:
        _place('the row', contents, asked, first, kind, waiting.get(kind, []), media_of)
    messages = [message for message in messages if message['role'] != 'system' or not _is_blank(message)]
    _check_turns(messages, needs_reply)
    while needs_reply and messages[-1]['role'] != 'assistant':
        messages.pop()
    require_one_kind(messages)
    tools = tools_of(meta.get('tools'))
    return [{**messages[0], 'tools': tools}, *messages[1:]] if tools else messages


def without_media(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of `meta` that rides along to the algorithm: all but the media and the tools."""
    return {key: value for key, value in meta.items() if key not in MEDIA_KEYS and key != 'tools'}


def _waiting(meta: Mapping[str, Any], kind: MediaKind) -> list[Any]:
    given = [meta[key] for key in (kind, f'{kind}s') if meta.get(key) is not None]
    if len(given) > 1:
        raise SampleError(f"meta holds both '{kind}' and '{kind}s'; only one may be given.")
    return [source for sources in given for source in listed(sources)]


def _message(index: int, message: Any, waiting: Set[MediaKind], media_of: MediaMaker) -> Message:
    if not isinstance(message, Mapping) or 'role' not in message or not speaks(message):
        raise SampleError(f"turn {index} has no 'role' and 'content': {str(message)[:80]}.")
    role, content = message['role'], message.get('content')
    if role not in ROLES:
        raise SampleError(
            f"turn {index} has the unknown role '{role}'. Roles are {', '.join(ROLES)}; "
            "the template ShareGPT maps other names with its option 'roles'."
        )
    where = f'turn {index} ({role})'
    refuse_unheeded(where, message)
    turn = filled(message)
    more = _beside(where, turn)
    if isinstance(content, str):
        content = [{'type': 'text', 'text': content}]
    if content is None and more.keys() & {'tool_calls', 'reasoning_content'}:
        content = []
    if not isinstance(content, (list, tuple)):
        raise SampleError(
            f'turn {index} ({role}) has {type(content).__name__} as content, not text or a list of parts.'
        )
    own = media_of_turn(where, turn)
    parts = [
        part
        for raw in content
        for part in (_action(where, role, raw) if _acts(raw) else _parts(where, raw, {*waiting, *own}, media_of))
    ]
    for kind, sources in own.items():
        _place(where, [parts], [parts], parts, kind, sources, media_of)
    weight = weight_of(where, turn)
    marks = {**({'prefix': True} if turn.get('prefix') else {}), **({} if weight == 1 else {'weight': weight})}
    return {'role': role, 'content': parts, **more, **marks}


def speaks(message: Mapping[str, Any]) -> bool:
    """Tells whether a raw turn has a content, or calls or a thought that stand for it."""
    return 'content' in message or any(message.get(key) for key in (*CALLS, *thoughts.KEYS))


def _beside(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """What a turn holds beside its content, in normal form."""
    told = {message[key] for key in thoughts.KEYS if isinstance(message.get(key), str) and message[key].strip()}
    strange = [key for key in thoughts.KEYS if message.get(key) and not isinstance(message[key], str)]
    if strange or len(told) > 1:
        raise SampleError(f"{where} should have one text as its thought ('{thoughts.KEYS[0]}'), but has others.")
    calls = [call for key in CALLS for call in calls_of(where, message.get(key))]
    if (calls or told) and message['role'] != 'assistant':
        raise SampleError(f'{where} has tool calls or a thought, which only assistant turns have.')
    found: dict[str, Any] = {'tool_calls': calls} if calls else {}
    if STATE in message:
        if message['role'] != 'user':
            raise SampleError(f'{where} has a state, which only user turns have: it is what a policy sees.')
        found[STATE] = state_of(where, message[STATE])
    if told:
        found['reasoning_content'] = told.pop()
    return {**found, **{key: str(message[key]) for key in ('name', 'tool_call_id') if message.get(key) is not None}}


def _acts(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get('type') == ACTION


def _action(where: str, role: str, part: Mapping[str, Any]) -> list[Part]:
    """Returns the part of an action."""
    if role != 'assistant':
        raise SampleError(f'{where} has an action, but only assistant turns act: what others did is told in words.')
    unread = [str(key) for key, value in part.items() if value is not None and key not in ('type', ACTION)]
    if unread:
        raise SampleError(f'{where} has an action with {", ".join(map(repr, unread))}, which nothing reads.')
    if part.get(ACTION) is None:
        raise SampleError(f"{where} has a part of type 'action' without an 'action'.")
    return [{'type': ACTION, ACTION: actions_of(where, part[ACTION])}]


def _parts(where: str, part: Any, waiting: Set[MediaKind], media_of: MediaMaker) -> list[Part]:
    """Returns one raw part as text parts, placeholders `{'type': kind}` and media `{'type': kind, kind: Media}`.

    A placeholder keeps its options under `options` and the number of its medium under `index` until it is filled.
    """
    if isinstance(part, str):
        part = {'type': 'text', 'text': part}
    if not isinstance(part, Mapping) or 'type' not in part:
        raise SampleError(f"{where} has a part without 'type': {str(part)[:80]}.")
    if part['type'] == 'text':
        if not isinstance(part.get('text'), str):
            raise SampleError(f"{where} has a text part whose 'text' is {type(part.get('text')).__name__}.")
        unread = [key for key, value in part.items() if value is not None and key not in ('type', 'text', *NOTES)]
        if unread:
            raise SampleError(
                f'{where} has a text part with {", ".join(map(repr, sorted(unread, key=str)))}, which nothing reads. '
                'Take it out; a weight stands in the turn itself.'
            )
        if not _is_unicode(part['text']):
            raise SampleError(f'{where} has a text with half a surrogate pair in it, which no tokenizer takes.')
        return _split(part['text'], waiting)
    if not isinstance(part['type'], str) or part['type'] not in PART_TYPES:
        known = ', '.join(['text', *PART_TYPES, ACTION])
        raise SampleError(f"{where} has a part of unknown type '{part['type']}'. Types are {known}.")
    kind = PART_TYPES[part['type']]
    known = PART_OPTIONS.get(kind, {})
    given = {key for key, value in part.items() if value is not None}
    _refuse_unknown(where, kind, given - {'type', 'index', *HINTS, *source_keys(kind), *known})
    source = _part_source(where, kind, part)
    own = {option: part[name] for name, option in known.items() if name in given}
    if source is not None:
        return [{'type': kind, kind: media_of(kind, _with_options(kind, source, own))}]
    index = part.get('index')
    if not isinstance(index, (int, type(None))):
        raise SampleError(f"{where} has {kind} media whose 'index' is {index!r}, not a number.")
    return [{'type': kind, 'options': own, **({} if index is None else {'index': index})}]


def _refuse_unknown(where: str, kind: MediaKind, keys: Set[str]) -> None:
    if keys:
        raise SampleError(
            f'{where} has {kind} media with {", ".join(map(repr, sorted(keys, key=str)))}, which means nothing here. '
            f'Options of {kind} media are: {", ".join(PART_OPTIONS.get(kind, {})) or "none"}.'
        )


def _with_options(kind: MediaKind, source: Any, own: Mapping[str, Any]) -> Media:
    """Returns the source as a Media whose own options are `own` too."""
    media = source if isinstance(source, Media) else Media(kind, source)
    return Media(kind, media.source, {**media.options, **own})


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _part_source(where: str, kind: MediaKind, part: Mapping[str, Any]) -> Any:
    """Returns what a media part brings along itself, in any of the forms chat rows use, or None."""
    given = (key for key in source_keys(kind) if part.get(key) is not None and not is_empty_record(part[key]))
    name = next(given, None)
    source = None if name is None else part[name]
    if name == 'base64':
        return f'data:{kind};base64,{source}'
    if isinstance(source, Mapping) and 'url' in source:
        _refuse_unknown(where, kind, {key for key, value in source.items() if value is not None} - {'url', *HINTS})
        return source['url']
    return source


def _split(text: str, waiting: Set[MediaKind]) -> list[Part]:
    """Returns text as parts, cut at the placeholders of the kinds that are `waiting`.

    A placeholder on a line of its own takes the line break with it: chat templates write their own.
    """
    parts: list[Part] = []
    start = 0
    for match in PLACEHOLDER.finditer(text):
        if match[1] not in waiting:
            continue
        before = text[start : match.start()]
        starts_line = not PLACEHOLDER.sub('', text[: match.start()].rpartition('\n')[2])
        start = match.end()
        if starts_line and text.startswith('\n', start):
            start += 1
        elif start == len(text):
            before = before.removesuffix('\n')
        parts += [*_text(before), {'type': match[1]}]
    return [*parts, *_text(text[start:])]


def _text(text: str) -> list[Part]:
    return [{'type': 'text', 'text': text}] if text else []


def _place(
    whose: str,
    contents: Sequence[list[Part]],
    asked: Sequence[list[Part]],
    first: list[Part] | None,
    kind: MediaKind,
    sources: list[Any],
    media_of: MediaMaker,
) -> None:
    """Fills the placeholders of one kind in `contents` with `sources`, in order or by the numbers they name.

    Without any placeholder they go before the text of `first`, if there are no others among `asked`, the contents that
    are no answers. `whose` media they are is said in errors.
    """
    items = [media_of(kind, source) for source in sources]
    parts = [part for content in contents for part in content if part['type'] == kind]
    slots = [part for part in parts if kind not in part]
    if not slots and _same(items, [part[kind] for part in parts]):
        return
    if not slots and not any(part['type'] == kind for content in asked for part in content):
        if first is None:
            raise SampleError(f'{whose} has {len(items)} {kind}(s) but no user turn to show them in.')
        first_text = next((index for index, part in enumerate(first) if part['type'] == 'text'), len(first))
        first[first_text:first_text] = [{'type': kind, kind: item} for item in items]
        return
    if len(slots) != len(items):
        where = 'the conversation' if whose == 'the row' else 'its text'
        raise SampleError(f'{where} has {len(slots)} {kind} placeholder(s), but {whose} has {len(items)} {kind}(s).')
    order = [slot.pop('index', number) for number, slot in enumerate(slots)]
    if sorted(order) != list(range(len(items))):
        raise SampleError(f'the {kind} placeholders name the indices {order} of {len(items)} {kind}(s).')
    for slot, number in zip(slots, order, strict=True):
        slot[kind] = media_of(kind, _with_options(kind, sources[number], slot.pop('options', {})))


def _same(items: list[Media], placed: list[Media]) -> bool:
    """Tells whether `meta` only lists again what the parts bring themselves."""
    if len(items) != len(placed):
        return not items
    pairs = [(_content(one.source), _content(other.source)) for one, other in zip(items, placed, strict=True)]
    return all(one is other or (isinstance(one, (str, bytes)) and one == other) for one, other in pairs)


def _content(source: Any) -> Any:
    """The bytes of a record, or the source itself."""
    return source['bytes'] if isinstance(source, Mapping) and source.get('bytes') is not None else source


def _is_blank(message: Message) -> bool:
    if message.keys() & {'tool_calls', 'reasoning_content', STATE}:
        return False
    return all(part['type'] == 'text' and not part['text'].strip() for part in message['content'])


def _check_turns(messages: list[Message], needs_reply: bool) -> None:
    for index, message in enumerate(messages):
        # A tool may have nothing to tell.
        if _is_blank(message) and message['role'] != 'tool':
            what = 'answer' if message['role'] == 'assistant' else f'{message["role"]} turn'
            raise SampleError(f'turn {index} is an empty {what}.')
    if not messages:
        raise SampleError('the conversation is empty: the template found nothing usable in the row.')
    if needs_reply and not any(message['role'] == 'assistant' for message in messages):
        raise SampleError('the conversation has no assistant turn, so there is nothing to learn.')
    begun = [index for index, message in enumerate(messages) if 'prefix' in message]
    if begun and (needs_reply or begun != [len(messages) - 1] or messages[-1]['role'] != 'assistant'):
        raise SampleError(
            f"turn {begun[0]} is marked 'prefix', the beginning of an answer to go on from: that can only be the last "
            'turn, of the assistant, of a prompt that is answered in training.'
        )
    if begun and messages[-1].keys() & {'tool_calls', 'reasoning_content'}:
        raise SampleError(
            f'turn {begun[0]} is the beginning of an answer and holds calls or a thought, but responses go on from its '
            'text alone. Write what they are to go on from into the content.'
        )
    if not needs_reply and not begun and messages[-1]['role'] == 'assistant':
        raise SampleError(
            'the prompt ends with an assistant turn, so there is nothing left to answer. If responses are to go on '
            'from it, set the option continue_final_message of the template Prompts, or mark the turn with '
            "'prefix': True."
        )


def without_prompt_text(conversation: Conversation) -> Conversation:
    """Returns the unconditional form of a conversation: what users say left empty, the media that they show kept."""

    def emptied(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, 'text': ''} if part['type'] == 'text' else part

    return [
        {**message, 'content': [emptied(part) for part in message['content']]} if message['role'] == 'user' else message
        for message in conversation
    ]
