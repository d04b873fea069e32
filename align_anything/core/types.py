"""The vocabulary that datasets, models, policies and engines share.

A formatter makes a `Conversation`; a family encodes it into an `Example`; a policy collates Examples into a
`Batch` and turns the Batch into `Scored` values; a loss turns those into sums that the engine divides.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from align_anything.core.actions import Actions

MediaKind = Literal['image', 'video', 'audio', 'action']
MEDIA_KINDS: tuple[MediaKind, ...] = ('image', 'video', 'audio')
"""The kinds that lie in files and are decoded; actions are numbers or names (`core/actions.py`) and in no file."""
ACTION: MediaKind = 'action'

Message = dict[str, Any]
"""One turn in Hugging Face chat form: `{'role': str, 'content': list[part]}`.

A part is `{'type': 'text', 'text': str}` or `{'type': kind, kind: Media}` (the decoded object after decoding), or
`{'type': 'action', 'action': Actions}` for what an assistant turn does. An assistant turn may hold `tool_calls`
(arguments as a dict) and `reasoning_content`, a `tool` turn `tool_call_id` and `name`, a `user` turn the `state` of a
body, numbers by name. The first turn of a conversation holds its `tools`, so that they stay with whatever is cut off
behind it. Any turn may have a `weight`, by which the loss weights of its tokens are multiplied.
"""
Conversation = list[Message]

BESIDE_CONTENT = ('tool_calls', 'reasoning_content', 'tool_call_id', 'name', 'tools')
"""What a turn in normal form may hold beside its role and content."""

Need = Literal['score', 'transition', 'probability']
NEEDS: tuple[Need, ...] = ('score', 'transition', 'probability')
"""What the score of a unit is, each more than the one before: a number that is better when it is higher; the
log-density of a transition that was sampled; the log-probability of one choice among finitely many."""

Array = Any
"""A numpy array; this floor imports no numpy."""


@dataclass(frozen=True)
class Media:
    """An image, video or audio clip that is not decoded yet.

    `source` is a path, bytes, an array, a PIL image, the `{'bytes', 'path'}` record of a Hugging Face feature, the
    `{'codes'}` that a codec made of it, or the `{'embedding'}` of an encoder outside the model.
    """

    kind: MediaKind
    source: Any
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Video:
    """A decoded video: the frames that were picked, and when each of them is shown.

    Attributes:
        frames: the picked frames, upright RGB, `(frames, height, width, 3)` uint8.
        timestamps: seconds from the video's start at which each frame is shown, ascending, `(frames,)` float64.
        fps: frames per second of the video itself, not of the picked frames.
        audio: the audio track from the video's start, when it was asked for and the video has one.
    """

    frames: Array
    timestamps: Array
    fps: float
    audio: Audio | None = None


@dataclass(frozen=True, eq=False)
class Audio:
    """A decoded audio clip, in mono.

    Attributes:
        samples: amplitudes, -1 to 1 at full scale, `(samples,)` float32.
        rate: samples per second.
    """

    samples: Array
    rate: int


@dataclass(frozen=True, eq=False)
class CodedMedia:
    """A medium as the codes that a codec made of it, or that a model sampled.

    Attributes:
        kind: what it is when it is decoded.
        codes: numbers in their code books, from 0: of an image `(books, height, width)`, of audio `(books, frames)`,
            of a video `(books, frames, height, width)`, int64.
        codec: fingerprint of the codec that they belong to; empty where the row brought them and does not say.
    """

    kind: MediaKind
    codes: Tensor
    codec: str = ''


@dataclass(frozen=True, eq=False)
class Embedding:
    """A medium that an encoder outside the model has read.

    Attributes:
        values: what it made of it, `(size,)` float32.
    """

    values: Array


def decoded_medium(part: Mapping[str, Any]) -> Any:
    """Returns the decoded medium of a part of a message.

    None where there is none: of a placeholder without a medium, of codes that no codec decodes, and of an embedding.
    """
    medium = part.get(part['type'])
    return None if isinstance(medium, (CodedMedia, Embedding)) else medium


def words_of(parts: Iterable[Mapping[str, Any]]) -> str:
    """Returns the text of the parts of a message, actions as a person reads them."""
    said = (part['text'] if part['type'] == 'text' else part.get(ACTION) for part in parts)
    return ''.join(own.written if type(own) is Actions else own for own in said if type(own) in (str, Actions))


@dataclass
class Piece:
    """A run of tokens with the media that stand in it.

    Attributes:
        ids: token ids, media placeholders already expanded, `(length,)` int64.
        weights: loss weight of each token, zero where it is not trained, `(length,)` float32.
        media: what the processor made of the media in this piece, concatenated along the first dimension.
        media_counts: number of media of each kind in this piece.
        token_tensors: what the model reads beside each token, such as `mm_token_type_ids`, each `(length,)`; of codes
            that are no tokens, `(length, codes)`.
        per_unit: values of each token with a weight, `(units,)` by name, such as its log-probability under a
            `reference`.
        prefix_length: tokens of the prompt that it continues; None for all of them.
        earlier: of a response, what cannot stand in one sequence with the rest of it, because the chat template writes
            an answer otherwise once later turns follow. Each is a sequence of its own with the beginning of the
            prompt; their units go before those of this piece.
        truncated: whether its end was cut off, for want of length.
    """

    ids: Tensor
    weights: Tensor
    media: dict[str, Tensor] = field(default_factory=dict)
    media_counts: dict[str, int] = field(default_factory=dict)
    token_tensors: dict[str, Tensor] = field(default_factory=dict)
    per_unit: dict[str, Tensor] = field(default_factory=dict)
    prefix_length: int | None = None
    earlier: list[Piece] = field(default_factory=list)
    truncated: bool = False

    def __len__(self) -> int:
        return self.ids.numel()

    @property
    def sequences(self) -> list[Piece]:
        """The earlier sequences of a response, and the piece itself."""
        return [*self.earlier, self]

    @property
    def units(self) -> int:
        """Number of tokens with a weight, those that the policy chose, in all its sequences."""
        return sum(int(piece.weights.count_nonzero()) for piece in self.sequences)


@dataclass
class Response(Piece):
    """A piece that a policy generated: its weights are zero where something else chose the tokens.

    `per_unit['rollout']` are the log-probabilities of its units under the distribution that the policy sampled from.

    Attributes:
        finished: whether the policy ended it; else it was clipped at the length limit.
        version: optimizer steps that the policy had done.
        parts: what it says, as the content of an assistant message in Hugging Face chat form, media decoded; of several
            turns, what the last one says.
        episode: what came of it in an environment, where it has turns there.
    """

    finished: bool = True
    version: int = 0
    parts: list[dict[str, Any]] = field(default_factory=list)
    episode: Episode | None = None

    @property
    def text(self) -> str:
        """What it says in words."""
        return words_of(self.parts)

    @property
    def message(self) -> Message:
        """The response as a turn of a conversation."""
        return {'role': 'assistant', 'content': self.parts}


@dataclass(frozen=True, eq=False)
class Turn:
    """A turn of the policy in an environment.

    Attributes:
        stop: tokens of the response up to its end.
        units: how many of them the policy chose in this turn.
        parts: what it says, as `Response.parts`.
        calls: number of tools that it calls.
        reward: what the environment gave for it, None for nothing.
        costs: what it cost, by name.
        info: what else the environment told of it.
    """

    stop: int
    units: int
    parts: list[dict[str, Any]]
    calls: int = 0
    reward: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Episode:
    """What came of a response of several turns in an environment.

    Attributes:
        prompt: what the first turn of the policy followed: the row's prompt, and how the environment began.
        asked: the messages of it.
        messages: those that followed, of the policy and of the environment in turn, media decoded.
        turns: those of the policy.
        ended: by whom: the environment (`done`), the limit of `turns`, of the run or its own, or of `tokens`, or a
            failure (`failed`).
        score: what the environment said of the episode as a whole, None for nothing.
    """

    prompt: Piece
    asked: Conversation
    messages: Conversation
    turns: tuple[Turn, ...]
    ended: Literal['done', 'turns', 'tokens', 'failed']
    score: float | None = None

    @property
    def reward(self) -> float | None:
        """All that the environment gave, None where it gave nothing."""
        given = [value for value in (*(turn.reward for turn in self.turns), self.score) if value is not None]
        return sum(given) if given else None

    @property
    def cost(self) -> float:
        """All that the turns cost."""
        return sum(value for turn in self.turns for value in turn.costs.values())

    @property
    def info(self) -> dict[str, Any]:
        """What the environment told, of what it told more than once the last."""
        return {name: value for turn in self.turns for name, value in turn.info.items()}

    @property
    def last_answer(self) -> int:
        """The number of the last turn of the policy among `messages`."""
        return max(number for number, message in enumerate(self.messages) if message['role'] == 'assistant')


@dataclass(frozen=True, eq=False)
class Unexpanded:
    """A prompt that grows by turns, as engines read it that expand the placeholders of media themselves.

    Attributes:
        ids: token ids, one placeholder for each medium.
        media: those media in order: the kind of each, the decoded object, and a name that no other object has.
        group: which prompts of a call began alike, by a number.
    """

    ids: list[int]
    media: tuple[tuple[MediaKind, Any, str], ...]
    group: int


@dataclass
class Example:
    """A prompt with its responses: one (supervised), two (chosen, rejected), or a group.

    A multi-turn supervised conversation has everything after the first prompt in its one response, later user
    turns with weight zero; where the chat template writes an answer otherwise once later turns follow, the response has
    several sequences, and what they share of their prompts is the prompt. `meta` rides along untouched (labels, ground
    truth, margins); `source` names the row. `unmatched` is the response of another row, for algorithms that compare
    with it. `source_index` is the number of the dataset that the row belongs to, `epoch` the one in which it is seen,
    0 in evaluations: what is random of it hangs on that. `conversation` is what the prompt was
    made of, media decoded, where something else than the policy reads it too. `unconditional` is the prompt with its
    text left empty, where responses are guided away from what follows that. `unexpanded` is a prompt that was not
    rendered in one go, for engines that do not read `prompt`.
    """

    prompt: Piece
    responses: list[Piece]
    source: str = ''
    meta: dict[str, Any] = field(default_factory=dict)
    unmatched: Piece | None = None
    source_index: int = 0
    epoch: int = 0
    conversation: Conversation | None = None
    unconditional: Piece | None = None
    unexpanded: Unexpanded | None = None

    @property
    def identity(self) -> tuple[int, str]:
        """Its dataset and its row, wherever their file lies: what randomness hangs on, beside the seed of the run."""
        return self.source_index, PurePath(self.source).name

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(piece) for response in self.responses for piece in response.sequences)


UNLIKE = 'of several kinds'
"""The kind of what is of several kinds."""


class Cost(NamedTuple):
    """What an Example, or several in one micro-batch, take: counted so that costs add up in any layout.

    Attributes:
        rows: rows that it fills. Where nothing is padded, each unit is a row of its own.
        length: length of the longest row, which each of them takes.
        work: its share of the computation, in the policy's own unit, which ranks even out.
        unmatched_rows, unmatched_length: the same of the responses of other rows, which have a pass of their own.
        towers: how much of the work is that of towers, which read media before everything else.
        kind: what everything in a micro-batch must be alike in, such as the size of samples; None where nothing is.
    """

    rows: int
    length: int
    work: float = 0.0
    unmatched_rows: int = 0
    unmatched_length: int = 0
    towers: float = 0.0
    kind: Hashable = None

    @property
    def size(self) -> int:
        """Its share of `max_length_per_batch`: the tokens of its larger forward pass; unlimited for unlike kinds."""
        if self.kind == UNLIKE:
            return sys.maxsize
        return max(self.rows * self.length, self.unmatched_rows * self.unmatched_length)

    def beside(self, other: Cost) -> Cost:
        """Returns what both take in one micro-batch."""
        kind = other.kind if self.kind is None else self.kind
        return Cost(
            self.rows + other.rows,
            max(self.length, other.length),
            self.work + other.work,
            self.unmatched_rows + other.unmatched_rows,
            max(self.unmatched_length, other.unmatched_length),
            self.towers + other.towers,
            kind if other.kind in (None, kind) else UNLIKE,
        )


@dataclass(frozen=True)
class Skipped:
    """A row that was left out, and why; `filtered` where that was meant, by its template or a setting."""

    source: str
    reason: str
    filtered: bool = False


@dataclass
class Batch:
    """Collated Examples of one micro-batch. It is never sliced: split the Examples and collate again.

    Attributes:
        inputs: what the policy that collated the batch reads, and nothing else does.
        segments: response that each unit belongs to, `(N,)`, non-decreasing.
        weights: loss weight of each unit, `(N,)` float32.
        num_responses: number of responses in the batch, R.
        examples_of_responses: example that each response belongs to, `(R,)`.
        sources: the row each example came from.
        metas: the examples' `meta` records.
        skipped: rows that fell out of this micro-batch.
        unmatched: the same prompts with the responses of other rows, where the Examples hold such.
        per_unit: further values of each unit, `(N,)` by name, that all responses bring.
        kinds: which units are of which kind, `(N,)` bool by name: text, or that of the medium whose codes they are.
            Empty where there are no codes.
        stats: what the batch costs: `tokens` computed, `padding` among them, `media` items.
    """

    inputs: Any
    segments: Tensor
    weights: Tensor
    num_responses: int
    examples_of_responses: Tensor
    sources: list[str]
    metas: list[dict[str, Any]]
    skipped: list[Skipped] = field(default_factory=list)
    unmatched: Batch | None = None
    per_unit: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, int] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with every tensor on `device`, copied asynchronously from pinned memory."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory; the data loader calls it by this name."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())

    def by_response(self, values: Tensor) -> tuple[Tensor, ...]:
        """Returns numbers of all units `(N,)` as those of each response, R tensors."""
        return values.split(torch.bincount(self.segments, minlength=self.num_responses).tolist())

    def values_of(self, name: str) -> Tensor:
        """Returns the per-unit values under `name`, `(N,)`; a batch without units has them under every name."""
        return self.per_unit[name] if len(self.segments) else self.weights.new_zeros(0)


COMPANION = 'companion/'
"""What names in `Piece.media` begin with under which another policy's predictions of its units are, `(units, …)`."""


class Scored(NamedTuple):
    """What a policy returns for a Batch; a tuple, because DeepSpeed looks for tensors in tuples only.

    Attributes:
        values: score of each unit, `(N,)` float32: of a token its log-probability, of a denoising step the
            log-density of its transition, of a draw of noise how small the error is. Policies that score whole
            responses give one for each of them, `(R,)`.
        entropy: entropy of the distribution each unit was sampled from, `(N,)`, on request.
        bootstrap: of a critic on request, the value behind the last unit of each response, `(R,)`.
        routing: of a mixture of experts on request, the probabilities of the experts and the tokens that went to each,
            summed over the tokens of the batch, `(2, experts)`.
        divergence: of a denoising policy, where the batch holds what the reference predicted, `(N,)`: of a step the
            exact KL divergence from it, of a draw the mean squared distance of the predictions.
        drift: the same from the policy that sampled.
        contrast: of a denoising policy that is told to, the errors of a policy that is better than the one that sampled
            and of one that is worse, `(N, 2)`, see `losses/nft.py`.
        prediction: of a denoising policy on request, what it predicts of each unit, `(N, …)`. In `Piece.media` as
            `companion/<role>` it comes back with the next batch.
        further: of frames of codes on request, the log-probability of the codes behind the unit, `(N,)`.
    """

    values: Tensor
    entropy: Tensor | None = None
    bootstrap: Tensor | None = None
    routing: Tensor | None = None
    divergence: Tensor | None = None
    drift: Tensor | None = None
    contrast: Tensor | None = None
    prediction: Tensor | None = None
    further: Tensor | None = None


def map_tensors(value: Any, function: Any) -> Any:
    """Applies `function` to every tensor in nested dicts, lists, tuples and dataclasses; returns the same shape."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, Scored):
        return Scored(*(map_tensors(item, function) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, function) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        fields = {name: map_tensors(getattr(value, name), function) for name in value.__dataclass_fields__}
        return type(value)(**fields)
    return value


def named_tensors(value: Any, name: str = '') -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor in nested dicts, lists, tuples and dataclasses with the name of what holds it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(item, str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from named_tensors(item, name)
    elif is_dataclass(value):
        yield from named_tensors(vars(value), name)
