"""Codes that a checkpoint or a run declares: any language model whose tokenizer has tokens for those of a codec.

`config.json` holds under `media_codes`, or the settings of a run under `model_cfgs.media_codes`, for each kind:

- `codec`: folder of the codec, relative to the checkpoint or absolute;
- `tokens`: how the tokens of codes are written, such as `<|s_{}|>` with the number of the code, those of all books one
  after the other; or a list with one pattern for each book; or `first_ids`: the id of the first code of each book;
- `opening`, `closing`: text of the tokens around a medium; `row_end`: of the token behind each row of a picture;
- `size`: the grid of every medium, such as `[16, 16]` codes; without it media differ in size;
- `max_length`: most tokens of a medium between its opening and closing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from align_anything.core.errors import ModelError
from align_anything.core.files import atomic_write_json, read_json
from align_anything.core.registry import nearest
from align_anything.core.types import MEDIA_KINDS, MediaKind
from align_anything.models.codecs.base import CONFIG, CodecRules, codec_rules
from align_anything.models.codes import DIMENSIONS, KindOfCodes, MediaCodes

DECLARATION = 'media_codes'
OF_ADAPTER = 'media_codes.json'
CODECS = 'codecs'
"""The folder of a checkpoint that its codecs lie in, by kind."""
TEXTS = 'codec', 'opening', 'closing', 'row_end'
KEYS = ('codec', 'tokens', 'first_ids', 'opening', 'closing', 'row_end', 'size', 'max_length')


def declared_codes(config: Any) -> Mapping[str, Any] | None:
    """Returns what a configuration declares of codes, None for nothing. Raises ModelError where it is no mapping."""
    declared = config.to_dict().get(DECLARATION) or None
    if declared is not None and not isinstance(declared, Mapping):
        raise ModelError(f'media_codes: {declared!r} is no mapping from kinds of media to how their codes are written.')
    return declared


def declare(config: Any, media_codes: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes a declaration into a configuration, with folders of codecs as seen from the working directory."""
    found = {
        kind: {**declared, 'codec': str(Path(declared['codec']).resolve())} if declared.get('codec') else dict(declared)
        for kind, declared in media_codes.items()
    }
    setattr(config, DECLARATION, found)


def codes_of(config: Any, tokenizer: Any, rows: int, continuous: frozenset[MediaKind]) -> MediaCodes | None:
    """Returns the codes that the configuration of a checkpoint declares, None where it declares none.

    Kinds that the model reads with a tower, `continuous` ones, stand as codes in answers only. Raises as `make_codes`.
    """
    declared = declared_codes(config)
    if declared is None:
        return None
    codes = make_codes(declared, config.name_or_path, tokenizer, rows)
    return replace(codes, prompts=codes.prompts - continuous)


def make_codes(declaration: Mapping[str, Any], home: str | Path, tokenizer: Any, rows: int) -> MediaCodes:
    """Returns the codes of a declaration.

    Args:
        declaration: of each kind, as the module says.
        home: folder that relative paths of codecs start from.
        tokenizer: of the checkpoint.
        rows: ids that the model has an embedding for.

    Raises ModelError for a declaration that cannot be read, or does not fit the codec or the tokenizer.
    """
    kinds, rules = {}, {}
    for kind, declared in declaration.items():
        if kind not in MEDIA_KINDS or not isinstance(declared, Mapping):
            raise ModelError(f"media_codes: '{kind}' is no kind of media with its settings: {', '.join(MEDIA_KINDS)}.")
        unknown = sorted(set(declared) - set(KEYS))
        if unknown:
            raise ModelError(
                f"media_codes.{kind} has no '{unknown[0]}'.{nearest(unknown[0], list(KEYS))} It has: {', '.join(KEYS)}."
            )
        if not declared.get('codec'):
            raise ModelError(f'media_codes.{kind}: name the folder of its codec under codec.')
        for key in TEXTS:
            if type(declared.get(key)) not in (str, type(None)):
                raise ModelError(f'media_codes.{kind}.{key}: {declared[key]!r} is no text.')
        codec = codec_rules(Path(home) / declared['codec'])
        if codec.kind != kind:
            raise ModelError(f'media_codes.{kind}.codec: {codec.folder} is a codec of {codec.kind}.')
        kinds[kind], rules[kind] = _kind(kind, declared, codec, tokenizer), codec
        _check_ids(kinds[kind], rows)
    _check_apart(list(kinds.values()))
    _check_marks(list(kinds.values()))
    return MediaCodes(kinds, rules, prompts=frozenset(kinds))


def keep_codes(config: Any, codes: MediaCodes | None, folder: Path) -> None:
    """Writes into a saved checkpoint, or adapter, what the configuration of a run declares of codes, and its codecs.

    Of a codec within a model, a checkpoint gets what is not among the model's weights; an adapter's model has it.
    """
    declared = declared_codes(config)
    if declared is not None:
        write_declaration(folder, declared, codes.rules)
    elif codes is not None and (folder / CONFIG).is_file():
        for rules in codes.rules.values():
            rules.complete(folder)


def write_declaration(folder: Path, declared: Mapping[str, Any], rules: Mapping[MediaKind, CodecRules]) -> None:
    """Writes a declaration into the `config.json` of a checkpoint, and copies of the codecs beside it.

    An adapter has no such file, and the one of the model under it may declare nothing: it gets `media_codes.json`.
    """
    for kind in declared:
        rules[kind].copy_to(folder / CODECS / kind)
    found = {kind: {**own, 'codec': f'{CODECS}/{kind}'} for kind, own in declared.items()}
    if (folder / CONFIG).is_file():
        atomic_write_json(folder / CONFIG, {**read_json(folder / CONFIG), DECLARATION: found})
    else:
        atomic_write_json(folder / OF_ADAPTER, found)


def declared_beside(adapter: Path) -> dict[str, Any]:
    """Returns the declaration in the folder of an adapter, nothing where there is none."""
    file = adapter / OF_ADAPTER
    found = read_json(file) if file.is_file() else {}
    return {kind: {**own, 'codec': str(adapter / own['codec'])} for kind, own in found.items()}


def _kind(kind: MediaKind, declared: Mapping[str, Any], codec: CodecRules, tokenizer: Any) -> KindOfCodes:
    def ids(key: str) -> tuple[int, ...]:
        text = declared.get(key) or ''
        found = tuple(tokenizer(text, add_special_tokens=False)['input_ids'])
        if tokenizer.unk_token_id in found or (len(found) > 1 and found[0] not in tokenizer.added_tokens_decoder):
            # Each of its pieces may stand in any text, where it would begin a medium or end one.
            raise ModelError(f"media_codes.{kind}.{key}: the tokenizer has no token '{text}' and none it begins with.")
        return found

    row_end = ids('row_end')
    if len(row_end) > 1:
        raise ModelError(f"media_codes.{kind}.row_end: '{declared['row_end']}' is no one token.")
    size, longest = declared.get('size'), declared.get('max_length')
    size = [size] if type(size) is int else size
    if size is not None and not (type(size) is list and len(size) == DIMENSIONS[kind] and all(map(_is_count, size))):
        raise ModelError(f'media_codes.{kind}.size: {size!r} is not {DIMENSIONS[kind]} numbers of codes.')
    if longest is not None and not _is_count(longest):
        raise ModelError(f'media_codes.{kind}.max_length: {longest!r} is no number of tokens.')
    made = KindOfCodes(
        kind,
        codec.books,
        _first(kind, declared, codec, tokenizer),
        ids('opening'),
        ids('closing'),
        row_end[0] if row_end else None,
        None if size is None else tuple(size),
        longest,
    )
    if not made.opening:
        raise ModelError(f'media_codes.{kind}.opening: name the token that media begin with.')
    inside = 0 if made.size is None else made.length(made.size) - len(made.opening) - len(made.closing)
    if made.longest is not None and inside > made.longest:
        raise ModelError(
            f'media_codes.{kind}.max_length: {longest} is less than the {inside} tokens of a medium of that size.'
        )
    if made.open_ended and not made.closing:
        raise ModelError(f'media_codes.{kind}: without a size, closing has to name the token that ends media.')
    return made


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _first(kind: MediaKind, declared: Mapping[str, Any], codec: CodecRules, tokenizer: Any) -> tuple[int, ...]:
    given, tokens = declared.get('first_ids'), declared.get('tokens')
    if (given is None) == (tokens is None):
        raise ModelError(f'media_codes.{kind}: say where the codes stand with either tokens or first_ids.')
    if given is not None:
        if type(given) is not list or any(type(first) is not int or first < 0 for first in given):
            raise ModelError(f'media_codes.{kind}.first_ids: {given!r} is no list of ids.')
        if len(given) != len(codec.books):
            raise ModelError(f'media_codes.{kind}.first_ids has {len(given)} ids for {len(codec.books)} code books.')
        return tuple(given)
    if type(tokens) not in (str, list) or not all(type(pattern) is str for pattern in tokens):
        raise ModelError(f'media_codes.{kind}.tokens: {tokens!r} is no text, nor a list of texts.')
    if isinstance(tokens, str):
        starts = [sum(codec.books[:book]) for book in range(len(codec.books))]
        patterns = [(tokens, start) for start in starts]
    elif len(tokens) == len(codec.books):
        patterns = [(pattern, 0) for pattern in tokens]
    else:
        raise ModelError(f'media_codes.{kind}.tokens has {len(tokens)} patterns for {len(codec.books)} code books.')
    return tuple(
        _first_of(kind, pattern, start, size, tokenizer.get_vocab().get)
        for (pattern, start), size in zip(patterns, codec.books, strict=True)
    )


def _first_of(kind: MediaKind, pattern: str, start: int, size: int, id_of: Callable[[str], int | None]) -> int:
    """The id of the first code of a book; its tokens have to follow each other in the vocabulary."""
    if '{}' not in pattern:
        raise ModelError(f"media_codes.{kind}.tokens: '{pattern}' has no {{}}, where the number of a code stands.")
    names = [pattern.replace('{}', str(start + number)) for number in range(size)]
    found = [id_of(name) for name in names]
    if None in found:
        raise ModelError(
            f"media_codes.{kind}.tokens: the tokenizer has no token '{names[found.index(None)]}': the codec has "
            f'{size} codes in this book.'
        )
    if found != list(range(found[0], found[0] + size)):
        raise ModelError(f"media_codes.{kind}.tokens: the ids of '{pattern}' do not follow each other.")
    return found[0]


def _check_ids(kind: KindOfCodes, rows: int) -> None:
    marks = (*kind.opening, *kind.closing, *(() if kind.row_end is None else (kind.row_end,)))
    last = max(*(stop for _, stop in kind.spans), *(mark + 1 for mark in marks))
    if last > rows:
        raise ModelError(
            f'media_codes.{kind.kind}: the codes, with what stands around them, reach to id {last - 1}, but the model '
            f'has {rows} embeddings: enlarge it with align-anything add-media-tokens.'
        )


def _check_apart(kinds: list[KindOfCodes]) -> None:
    spans = sorted((span, kind.kind) for kind in kinds for span in kind.spans)
    for (one, kind), (other, _) in zip(spans, spans[1:], strict=False):
        if one[1] > other[0]:
            raise ModelError(f'media_codes: ids {other[0]} to {one[1] - 1} are codes of {kind} twice over.')


def _check_marks(kinds: list[KindOfCodes]) -> None:
    """Raises ModelError for ids around media that are codes themselves, or that could mean two things."""
    spans = [span for own in kinds for span in own.spans]
    for own in kinds:
        ends = () if own.row_end is None else (own.row_end,)
        for key, marks in (('opening', own.opening), ('closing', own.closing), ('row_end', ends)):
            if any(start <= mark < stop for mark in marks for start, stop in spans):
                raise ModelError(f'media_codes.{own.kind}.{key}: it holds a token that is a code.')
        if own.row_end in (*own.opening[:1], *own.closing[:1]):
            raise ModelError(f'media_codes.{own.kind}.row_end: it is what opens or closes the {own.kind} too.')
        begins = [other.kind for other in kinds if other.opening[:1] == own.closing[:1]]
        if begins:
            raise ModelError(f'media_codes.{own.kind}.closing: it begins with the token that opens {begins[0]}.')
        # A score is one among the codes of the kind that a token may end.
        ended = [other.kind for other in kinds if other is not own and other.closing[:1] == own.closing[:1]]
        if own.open_ended and ended:
            raise ModelError(
                f'media_codes.{own.kind}.closing: it ends {ended[0]} too, but without a size it is sampled among codes '
                'of one kind: give each a token of its own.'
            )
