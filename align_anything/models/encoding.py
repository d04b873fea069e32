"""Runs of text to pieces of tokens, media included."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.processing_utils import TextKwargs

from align_anything.core.errors import SampleError
from align_anything.core.logging import get_logger
from align_anything.core.types import CodedMedia, Embedding, MediaKind, Piece, Video
from align_anything.models import structure
from align_anything.models.codes import MARK
from align_anything.models.media_arguments import media_arguments, sampled_rate
from align_anything.models.rendering import Run

logger = get_logger(__name__)

Merge = Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]
TOKEN_OUTPUTS = ('mm_token_type_ids', 'token_type_ids')
UNUSED_OUTPUTS = ('input_ids', 'attention_mask', 'labels', *TOKEN_OUTPUTS)
CALL_ARGUMENTS = frozenset(TextKwargs.__annotations__) - {'padding_side'}
"""Arguments of a tokenizer's call; the side that it pads on is also an attribute, and nothing is padded here."""


def merge_media(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Joins processor outputs along the first dimension; other dimensions are padded with zeros to the largest."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _cat_ragged([part[name] for part in parts if name in part]) for name in names}


def _cat_ragged(tensors: list[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        if list(tensor.shape[1:]) != shape:
            larger = tensor.new_zeros((tensor.shape[0], *shape))
            larger[tuple(slice(size) for size in tensor.shape)] = tensor
            tensor = larger
        padded.append(tensor)
    return torch.cat(padded)


def join(pieces: Sequence[Piece], merge: Merge = merge_media) -> Piece:
    """Puts pieces end to end into one, their media joined by `merge`."""
    if len(pieces) == 1:
        return pieces[0]
    names = dict.fromkeys(name for piece in pieces for name in piece.token_tensors)
    return Piece(
        ids=torch.cat([piece.ids for piece in pieces]),
        weights=torch.cat([piece.weights for piece in pieces]),
        media=merge([piece.media for piece in pieces if piece.media]),
        media_counts=dict(sum((Counter(piece.media_counts) for piece in pieces), Counter())),
        token_tensors={name: torch.cat(_with_blanks(name, pieces)) for name in names},
    )


def _with_blanks(name: str, pieces: Sequence[Piece]) -> list[Tensor]:
    """The token tensors of that name of all pieces, zeros of those without."""
    like = next(piece.token_tensors[name] for piece in pieces if name in piece.token_tensors)
    return [piece.token_tensors.get(name, like.new_zeros(len(piece), *like.shape[1:])) for piece in pieces]


def listed(counts: Mapping[str, int]) -> str:
    """Returns numbers by kind in words, such as `2 images`."""
    return ', '.join(f'{number} {kind}{"s" if number > 1 else ""}' for kind, number in counts.items())


def pad_left(rows: Sequence[Tensor], filling: int = 0) -> Tensor:
    """Returns rows of unequal length as one tensor `(rows, longest)`, filled up on the left."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=filling, padding_side='left')


def pad_positions(rows: Sequence[Tensor]) -> Tensor:
    """Returns positions of sequences, each `(rows, length)`, filled up on the left, as `(rows, batch, longest)`.

    Where each has one row, it is `(batch, longest)`.
    """
    positions = pad_left([own.T for own in rows]).permute(2, 0, 1)
    return positions[0] if len(positions) == 1 else positions


def truncate(piece: Piece, length: int) -> Piece:
    """Returns the first `length` tokens of a piece, all its media with them."""
    return Piece(
        ids=piece.ids[:length],
        weights=piece.weights[:length],
        media=piece.media,
        media_counts=piece.media_counts,
        token_tensors={name: tensor[:length] for name, tensor in piece.token_tensors.items()},
    )


def common_length(one: Piece, other: Piece) -> int:
    """Returns how many tokens two pieces begin with alike."""
    length = min(len(one), len(other))
    differing = (one.ids[:length] != other.ids[:length]).nonzero()
    return int(differing[0]) if len(differing) else length


def behind(piece: Piece, length: int) -> Piece:
    """Returns the tokens of a piece behind the first `length`; its media stand in those."""
    tensors = {name: tensor[length:] for name, tensor in piece.token_tensors.items()}
    return Piece(piece.ids[length:], piece.weights[length:], token_tensors=tensors)


def whole(pieces: list[Piece], cut: bool) -> Piece:
    """Returns the response that several sequences make; `cut` says that some at its end were left out."""
    *earlier, last = pieces
    last.earlier = earlier
    last.truncated = cut or any(piece.truncated for piece in pieces)
    return last


def forget_call_arguments(tokenizer: Any) -> None:
    """Makes a tokenizer forget the padding, the truncation and the like that its file has kept of some call.

    Processors take them for defaults of every call, of audio too.
    """
    kept = sorted(CALL_ARGUMENTS & tokenizer.init_kwargs.keys())
    if kept:
        logger.warning('tokenizer_config.json has %s: no run obeys that, its own settings count', ', '.join(kept))
        tokenizer.init_kwargs = {key: value for key, value in tokenizer.init_kwargs.items() if key not in kept}


class RunEncoder:
    """Tokenises runs as transformers would: the first with the BOS that a chat prompt gets, later ones as they follow.

    Picklable. `media_token_ids` never bear weight; `placeholders` is the text of one medium of each kind.
    """

    videos_apart: ClassVar[bool] = False
    """Whether the processor mixes up images and videos that come in one call."""

    def __init__(
        self, tokenizer: Any, processor: Any, placeholders: Mapping[str, str], media_token_ids: frozenset[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.processor = processor
        self.placeholders = dict(placeholders)
        self.media_token_ids = media_token_ids
        self._sentinels = self._find_sentinels()

    def pieces(self, run: Run, first: bool = False) -> list[Piece]:
        """Encodes one run, video by video where the processor wants that. Raises as `piece` does."""
        self._check_placeholders(run)
        return [self.piece(part, first and number == 0) for number, part in enumerate(self._calls(run))]

    def arguments(self, media: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Returns the processor's arguments for the media of one run, by kind. Raises SampleError for a wrong rate."""
        return media_arguments(self.processor, media)

    def handed(self, run: Run) -> tuple[tuple[str, Any], ...]:
        """Returns the media that the processor gets for a run, `(kind, object)` in the order of their tokens."""
        return run.media

    def embedding_size(self, kind: MediaKind) -> int | None:
        """Returns the size of the vectors that stand for media of a kind, None where the model reads media itself."""
        return None

    def smallest(self, kind: MediaKind, rate: int | None) -> Any:
        """Returns a small medium that the processor takes; `rate` is that of an audio clip."""
        return structure.smallest(kind, rate)

    def likeness(self, video: Video) -> Hashable:
        """Returns what the videos of one call of the processor must have in common."""
        return len(video.frames), sampled_rate(video)

    def tidied(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the processor's outputs in the form that the model body takes and `merge_media` joins."""
        return outputs

    def piece(self, run: Run, first: bool = False) -> Piece:
        """Encodes one run. Raises SampleError when placeholders and media disagree or the processor refuses them."""
        if run.token is not None:
            return Piece(torch.tensor([run.token]), torch.tensor([run.weight]))
        self._check_placeholders(run)
        if run.media or (first and self.processor is not None):
            outputs, skip = self._process(run, first)
            ids = outputs['input_ids'][0][skip:]
            media = {name: value for name, value in outputs.items() if run.media and name not in UNUSED_OUTPUTS}
            token_tensors = {name: outputs[name][0][skip:].long() for name in TOKEN_OUTPUTS if name in outputs}
        else:
            ids, media, token_tensors = torch.tensor(self._text_ids(run.text, first), dtype=torch.long), {}, {}
        is_media = torch.isin(ids, torch.tensor(sorted(self.media_token_ids), dtype=torch.long))
        if bool(is_media.any()) != bool(run.media):
            raise SampleError(
                'the text contains a media placeholder token without a medium'
                if not run.media
                else 'the processor wrote no tokens for the media of this turn'
            )
        weights = torch.where(is_media, 0.0, run.weight)
        return Piece(ids, weights, media, dict(Counter(kind for kind, _ in self.handed(run))), token_tensors)

    def _calls(self, run: Run) -> list[Run]:
        """Splits a run at its videos where one call of the processor cannot take all of its media."""
        videos = [item for kind, item in run.media if kind == 'video']
        alike = len({self.likeness(video) for video in videos}) < 2
        mixed = self.videos_apart and bool(videos) and any(kind == 'image' for kind, _ in run.media)
        if alike and not mixed:
            return [run]
        found = list(re.finditer(re.escape(self.placeholders['video']), run.text))
        cuts = [match.start() for match in found] + ([match.end() for match in found] if mixed else [])
        bounds = sorted({0, *cuts, len(run.text)} if mixed else {0, *cuts[1:], len(run.text)})
        return self._stretches(run, list(zip(bounds, bounds[1:], strict=False)))

    def stretches(self, run: Run) -> list[Run | CodedMedia]:
        """Returns a run in stretches of text, each with the media in it, and the coded media between them."""
        marks = list(MARK.finditer(run.text)) if run.coded else []
        ends = [0, *(end for mark in marks for end in mark.span()), len(run.text)]
        texts = self._stretches(run, list(zip(ends[::2], ends[1::2], strict=True)))
        coded = [run.coded[int(mark[1])] for mark in marks]
        return [part for pair in zip_longest(texts, coded) for part in pair if part is not None]

    def _stretches(self, run: Run, bounds: Sequence[tuple[int, int]]) -> list[Run]:
        if bounds == [(0, len(run.text))]:
            return [run]
        waiting: dict[str, deque[Any]] = {}
        for kind, item in run.media:
            waiting.setdefault(kind, deque()).append(item)
        runs = []
        for start, stop in bounds:
            text = run.text[start:stop]
            counts = {kind: text.count(self.placeholders[kind]) for kind in waiting}
            media = tuple((kind, waiting[kind].popleft()) for kind, count in counts.items() for _ in range(count))
            runs.append(replace(run, text=text, media=media))
        return runs

    def _text_ids(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        if not first:
            for sentinel, ids in self._sentinels:
                found = self.tokenizer(sentinel + text, add_special_tokens=False)['input_ids']
                if found[: len(ids)] == ids:
                    return found[len(ids) :]
        return self.tokenizer(text, add_special_tokens=False)['input_ids']

    def _process(self, run: Run, first: bool) -> tuple[Mapping[str, Tensor], int]:
        media: dict[str, list[Any]] = {}
        for kind, item in self.handed(run):
            media.setdefault(kind, []).append(item)
        arguments = self.arguments(media)
        if first:
            return self._call(run.text, {**arguments, **self._special_tokens(run)}), 0
        arguments['add_special_tokens'] = False
        for sentinel, ids in self._sentinels:
            outputs = self._call(sentinel + run.text, arguments)
            if outputs['input_ids'][0][: len(ids)].tolist() == ids:
                return outputs, len(ids)
        return self._call(run.text, arguments), 0

    def unexpanded(self, run: Run, first: bool = True) -> list[int]:
        """Returns the ids of a run with one placeholder for each medium, as other engines read it."""
        if not first:
            return self._text_ids(run.text, first)
        return self.tokenizer(run.text, **self._special_tokens(run))['input_ids']

    def _special_tokens(self, run: Run) -> dict[str, bool]:
        """As apply_chat_template does: the tokenizer's own habit, unless the template has written the BOS itself."""
        bos = self.tokenizer.bos_token
        return {'add_special_tokens': False} if bos is not None and run.text.startswith(bos) else {}

    def _call(self, text: str, arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
        try:
            outputs = self.processor(text=[text], return_tensors='pt', **arguments)
        except Exception as error:  # Processors raise anything from ValueError to StopIteration for a bad medium.
            raise SampleError(f'{type(self.processor).__name__} refuses this turn: {error!r}') from error
        return self.tidied(outputs)

    def _check_placeholders(self, run: Run) -> None:
        counts = Counter(kind for kind, _ in run.media)
        unknown = set(counts) - set(self.placeholders)
        if unknown:
            raise SampleError(f'this model takes no {" or ".join(sorted(unknown))}')
        for kind, placeholder in self.placeholders.items():
            found = run.text.count(placeholder)
            if found != counts[kind]:
                raise SampleError(
                    f'the rendered text has {found} {kind} placeholders ({placeholder}) for {counts[kind]} {kind}s'
                )
        for kind, item in run.media:
            given = len(item.values) if isinstance(item, Embedding) else None
            self._check_size(kind, given, self.embedding_size(kind))

    def _check_size(self, kind: MediaKind, given: int | None, wanted: int | None) -> None:
        """Compares the sizes of an embedding, None for a medium itself."""
        if given == wanted:
            return
        if wanted is None:
            raise SampleError(f'the row has an embedding as {kind}, and this model reads the {kind} itself')
        found = f'the {kind} itself' if given is None else f'an embedding of {given}'
        raise SampleError(f'this model takes an embedding of {wanted} numbers as {kind}, and the row has {found}')

    def _find_sentinels(self) -> list[tuple[str, list[int]]]:
        """Texts to put before a run that does not begin a text, so that the tokenizer adds no space in front of it."""

        def ids(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False)['input_ids']

        if ids('\na') == ids('\n') + ids('a'):
            return []
        known = [text for text in ('\n', self.tokenizer.eos_token) if text]
        return [(text, ids(text)) for text in known]
