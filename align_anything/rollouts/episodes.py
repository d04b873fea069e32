"""Rollouts of several turns: the policy acts in an environment, and what that shows stands between its turns.

An episode is one response: the tokens of all turns in order, those of observations with weight zero. It only grows.
What was sampled is never tokenised again, and nothing before it is rendered again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol
from uuid import uuid4

from align_anything.core.actions import Actions
from align_anything.core.distributed import all_gather_object
from align_anything.core.errors import SampleError, WorldError
from align_anything.core.logging import get_logger
from align_anything.core.types import (
    ACTION,
    Conversation,
    Example,
    MediaKind,
    Message,
    Piece,
    Response,
    Skipped,
    Turn,
    Unexpanded,
)
from align_anything.datasets.media.image import finished
from align_anything.environments.base import Call, Said
from align_anything.environments.pool import Answered, Begun, EpisodeFailed, Pool
from align_anything.models.action_codes import from_words
from align_anything.models.call_form import CallForm, call_form
from align_anything.models.chat_form import message_of
from align_anything.models.spec import Spec
from align_anything.models.turns import TurnEncoder, with_tools, with_turns
from align_anything.rollouts.at_own_pace import at_own_pace
from align_anything.rollouts.base import Around, Sampling, Tell, tell_whole
from align_anything.rollouts.failures import Counts, check_failures, counted
from align_anything.rollouts.growing import Acting
from align_anything.rollouts.media import unexpanded
from align_anything.rollouts.restricted import seed_of

logger = get_logger(__name__)


class Encoder(Protocol):
    """Encodes what an environment shows between two turns of a policy."""

    def between(self, messages: Conversation, tools: Sequence[Any] = ()) -> Any: ...

    def piece(self, run: Any, said: Sequence[int]) -> Piece: ...


OnFailure = Literal['drop', 'zero']
Place = tuple[int, int]
"""The number of a row, and that of an episode of it."""


@dataclass
class Episodes(Around):
    """Generates with `engine`, turn by turn, in the environments of `pool`; itself a rollout engine.

    The generations of a row begin with the
    same seed, which is another one in each epoch. Failed episodes are left out of their group, or are worth nothing; a
    group of which one is left is left out too, for there is nothing to compare that with.

    Attributes:
        engine: what samples the turns.
        spec: the family of the policy.
        pool: makes the environments.
        max_turns: most turns of the policy in an episode.
        max_tokens: most tokens of an episode, its prompt and what it is shown included. A turn begins only where
            `max_new_tokens` are left.
        on_failure: what becomes of an episode whose environment failed.
        max_failures: share of the last episodes that may fail.
        seed: of the run.
        in_step: whether all ranks go through as many turns as the longest episode on any of them, as engines want that
            several ranks share. Else none waits for another, and `generate` may run in a thread of its own.
        expands: whether the engine reads prompts `unexpanded`.
        at_own_pace: whether an episode goes on as soon as its own environment has answered, which takes an engine that
            generates for several threads side by side. Else all go on turn by turn.
        untold: what this rank has not told of the last call yet: its failures, the number of its episodes, where the
            last one failed, and the rows that they were of.
        counts: how many failed lately; it belongs to the state of a run.
        encoder: what encodes that which is shown between turns; None for what the chat template writes.
    """

    spec: Spec
    pool: Pool
    max_turns: int
    max_tokens: int
    on_failure: OnFailure = 'drop'
    max_failures: float = 0.1
    seed: int = 0
    in_step: bool = True
    expands: bool = False
    at_own_pace: bool = False
    untold: tuple[list[Skipped], int, str, list[str]] = ([], 0, '', [])
    counts: Counts = field(default_factory=list)
    encoder: Encoder | None = None
    _calls: CallForm | None = None
    _warned: set[str] = field(default_factory=set)
    _guard: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._encoder = self.encoder
        if self._encoder is None:
            self._encoder, self._calls = TurnEncoder(self.spec), call_form(self.spec.renderer)
        self._owner, self._called, self._named_so_far = uuid4().hex, count(), count()
        self._call = 0

    def failed(self, listed: Callable[[list[Skipped]], None] | None = None) -> list[Skipped]:
        """Returns the episodes of the last call of `generate` that failed, on all ranks, and why. Every rank calls it.

        Raises WorldError as `check_failures` does, when they have been `listed`.
        """
        told, self.untold = all_gather_object(self.untold), ([], 0, '', [])
        failures = [item for own, _, _, _ in told for item in own]
        rows = {row for _, _, _, own in told for row in own}
        self.counts = counted(self.counts, len(failures), sum(number for _, number, _, _ in told), len(rows))
        trace = next((trace for _, _, trace, _ in reversed(told) if trace), '')
        if listed is not None:
            listed(failures)
        check_failures(self.counts, self.max_failures, failures, trace)
        return failures

    def generate(
        self, examples: Sequence[Example], sampling: Sampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """Returns an episode for each response that is asked for, less those that failed.

        Every rank calls it. Raises WorldError where an environment begins otherwise with the same seed.
        """
        self._call = next(self._called)
        with ExitStack() as opened:
            acting = self._opened(examples, sampling, opened)
            every = [one for own in acting for one in own]
            begun = iter(self.pool.begin([one.seat for one in every]))
            for number, (example, own) in enumerate(zip(examples, acting, strict=True)):
                self._begin(example, number, [(one, next(begun)) for one in own], sampling)
            if self.at_own_pace:
                self._each_at_own_pace(acting, sampling)
            else:
                self._in_step(acting, sampling)
        failed = [one for one in every if one.ended == 'failed']
        trace = next((one.trace for one in reversed(failed) if one.trace), '')
        rows = list(dict.fromkeys(example.source for example in examples))
        self.untold = [Skipped(one.source, one.reason) for one in failed], len(every), trace, rows
        made = [self._responses(own, sampling.responses) for own in acting]
        tell_whole(made, tell)
        return made

    def _opened(self, examples: Sequence[Example], sampling: Sampling, opened: ExitStack) -> list[list[Acting]]:
        """The episodes of each row, not begun, their environments to be closed with what is `opened`."""
        rows, seeds = [], []
        for example in examples:
            rows.append({**example.meta, 'messages': example.conversation or [], 'source': example.source})
            names = (*example.identity, example.epoch)
            seeds.append(seed_of(self.seed, *names))
        number = sampling.responses
        seats = self.pool.open(
            [row for row in rows for _ in range(number)], [seed for seed in seeds for _ in range(number)]
        )
        opened.callback(self.pool.close, seats)
        return [
            [Acting(seat, example.source) for seat in seats[start * number : (start + 1) * number]]
            for start, example in enumerate(examples)
        ]

    def _begin(
        self,
        example: Example,
        number: int,
        acting: Sequence[tuple[Acting, Begun | EpisodeFailed]],
        sampling: Sampling,
    ) -> None:
        """Gives the episodes of a row what they begin with, or fails them."""
        first: Begun | None = None
        asked, prompt, reason = example.conversation or [], example.prompt, ''
        read: Unexpanded | None = None
        for one, begun in acting:
            if type(begun) is EpisodeFailed:
                one.fail(str(begun), begun.trace)
                continue
            begun = begun._replace(messages=self._seen(begun.messages))
            self._require_fit(example.source, one.seat.session.name, begun)
            if first is None:
                first = begun
                asked, prompt, reason = self._prompt(example, begun, sampling)
                if self.expands and not reason:
                    ids, media = unexpanded(self.spec, prompt, asked)
                    read = Unexpanded(ids, self._named(media), number)
            elif _said(begun.messages) != _said(first.messages):
                raise WorldError(
                    f'{example.source}: the environment begins otherwise with the same seed, so that its episodes '
                    'cannot be compared: whatever is random in reset must hang on the seed alone.'
                )
            one.asked, one.prompt, one.tools = asked, prompt, begun.tools
            one.rewarded, one.succeeds = begun.rewards, begun.succeeds
            one.unexpanded = read
            if reason:
                one.fail(reason)

    def _require_fit(self, source: str, name: str, begun: Begun) -> None:
        """Raises WorldError where nothing that the policy does can be done in an environment that a row names."""
        if self.spec.space is None or begun.actions is None:
            return
        problem = self.spec.space.unfit(begun.actions)
        if problem:
            raise WorldError(f'{source}: the policy cannot act in {name}: {problem}.')
        if beyond := self.spec.space.beyond(begun.actions):
            self._warn('%s knows no %s, which the policy may do', name, ', '.join(beyond))

    def _warn(self, message: str, name: str, *more: str) -> None:
        """Warns once of each environment."""
        if message + name not in self._warned:
            self._warned.add(message + name)
            logger.warning(message, name, *more)

    def _prompt(self, example: Example, begun: Begun, sampling: Sampling) -> tuple[Conversation, Piece, str]:
        """What the first turn follows, as messages and as tokens; and what is wrong with it, if anything."""
        asked, prompt = example.conversation or [], example.prompt
        try:
            if begun.messages or begun.tools:
                if asked and asked[-1].get('prefix') and begun.messages:
                    raise SampleError('the row ends with the beginning of an answer, and the environment goes on')
                asked = with_turns(with_tools(asked, begun.tools), begun.messages)
                prompt = self.spec.encode_prompt(asked)
        except SampleError as error:
            return asked, prompt, str(error)
        if len(prompt) + sampling.max_new_tokens > self.max_tokens:
            return (
                asked,
                prompt,
                (
                    f'the prompt has {len(prompt)} tokens with what the environment begins with, and with a turn of '
                    f'{sampling.max_new_tokens} it is longer than the {self.max_tokens} of an episode'
                ),
            )
        return asked, prompt, ''

    # Turns

    def _in_step(self, acting: Sequence[Sequence[Acting]], sampling: Sampling) -> None:
        """Goes through all episodes turn by turn."""
        # An engine is probed on all ranks by their first call.
        goes_on, turn = True, 0
        while goes_on:
            if turn:
                self._turn(acting, _live(acting), sampling, turn)
            else:
                self._first_turn(acting, sampling)
            goes_on, turn = bool(_live(acting)), turn + 1
            if self.in_step:
                goes_on = any(all_gather_object(goes_on))

    def _each_at_own_pace(self, acting: Sequence[Sequence[Acting]], sampling: Sampling) -> None:
        """Goes through each episode without waiting for others, but for those that share its environment."""
        self.probe([one.example(self.spec.merge_media) for _, one in _firsts(acting)], sampling)
        seeds = sampling.seeds or tuple(seed_of(sampling.seed, number) for number in range(len(acting)))
        # What is sampled hangs on the row, the generation and the turn alone.
        sampling = replace(sampling, seeds=seeds)
        together: dict[int, list[Place]] = {}
        for number, which in _live(acting):
            together.setdefault(id(acting[number][which].seat.session), []).append((number, which))

        def goes_on(places: list[Place], turn: int) -> bool:
            live = [(number, which) for number, which in places if acting[number][which].live]
            self._turn(acting, live, sampling, turn)
            return any(acting[number][which].live for number, which in places)

        at_own_pace([*together.values()], goes_on)

    def _first_turn(self, acting: Sequence[Sequence[Acting]], sampling: Sampling) -> None:
        """A turn of every episode, of which all generations of a row follow one prompt."""
        firsts = _firsts(acting)
        seeds = None if sampling.seeds is None else tuple(sampling.seeds[number] for number, _ in firsts)
        found = self.engine.generate(
            [one.example(self.spec.merge_media) for _, one in firsts], replace(sampling, seeds=seeds)
        )
        ones = [one for number, _ in firsts for one in acting[number]]
        self._go_on(ones, [response for own in found for response in own], sampling)

    def _turn(self, acting: Sequence[Sequence[Acting]], places: Sequence[Place], sampling: Sampling, turn: int) -> None:
        """A turn of the episodes at these places, each behind a prompt of its own."""
        ones = [acting[number][which] for number, which in places]
        with self._guard:
            examples = [one.example(self.spec.merge_media) for one in ones]
        found = self.engine.generate(examples, replace(_sampling(sampling, turn, places), responses=1))
        self._go_on(ones, [response for (response,) in found], sampling)

    def _go_on(self, ones: Sequence[Acting], responses: Sequence[Response], sampling: Sampling) -> None:
        """Adds a turn to those episodes that are live, and lets their environments answer."""
        with self._guard:
            said = [self._say(one, response) for one, response in zip(ones, responses, strict=True) if one.live]
        asking = [own for own in said if own is not None]
        # All environments at once: those in other processes are waited for together.
        answers = self.pool.step([own.one.seat for own in asking], [own.said for own in asking])
        with self._guard:
            for own, answer in zip(asking, answers, strict=True):
                self._hear(own, answer, sampling.max_new_tokens)
        over = [one for one in ones if one.ended is not None and one.unscored]
        for one, score in zip(over, self.pool.score([one.seat for one in over]), strict=True):
            one.take_score(score)
            if one.ended == 'done' and one.rewarded and not one.is_judged:
                self._warn(
                    '%s ended an episode (done) without a reward or a score: nothing is learned from it unless other '
                    'rewards judge it (metric abstained). Set rewards = False where others do',
                    one.seat.session.name,
                )

    def _say(self, one: Acting, response: Response) -> _Saying | None:
        """Adds a turn to an episode; returns what its environment is to answer, None where the turn was clipped."""
        said, message = self._said(response, one)
        one.pieces.append(response)
        one.messages.append(message)
        turn = Turn(sum(map(len, one.pieces)), response.units, response.parts, len(said.calls))
        if response.finished:
            return _Saying(one, response, turn, said)
        one.turns.append(turn)
        one.end('tokens')
        return None

    def _hear(self, own: _Saying, answer: Answered | EpisodeFailed, longest: int) -> None:
        """Adds what an environment answered, and shows it in front of the next turn."""
        one, turn = own.one, own.turn
        if type(answer) is EpisodeFailed:
            one.turns.append(turn)
            one.fail(str(answer), answer.trace)
            return
        messages, step = answer
        messages = self._seen(messages)
        one.turns.append(replace(turn, reward=step.reward, costs=step.costs, info=step.info))
        one.messages += messages
        if step.done:
            one.end('done')
        elif step.truncated or len(one.turns) == self.max_turns:
            one.end('turns')
        else:
            self._show(one, messages, own.response, longest)

    def _show(self, one: Acting, messages: Conversation, response: Response, longest: int) -> None:
        try:
            run = self._encoder.between(messages, one.tools)
            shown = self._encoder.piece(run, response.ids.tolist())
        except SampleError as error:
            one.fail(f'what the environment shows cannot be read: {error}')
            return
        if one.length + len(shown) + longest > self.max_tokens:
            one.end('tokens')
            return
        one.pieces.append(shown)
        if one.unexpanded is not None:
            said, before = response.ids.tolist(), one.unexpanded
            ids = self._encoder.unexpanded(run, said) if shown.media_counts else shown.ids.tolist()
            media = run.media if shown.media_counts else ()
            one.unexpanded = replace(before, ids=[*before.ids, *said, *ids], media=(*before.media, *self._named(media)))

    def _named(self, media: Sequence[tuple[MediaKind, Any]]) -> tuple[tuple[MediaKind, Any, str], ...]:
        start = f'{self._owner}/{self._call}'
        return tuple((kind, item, f'{start}/{next(self._named_so_far)}') for kind, item in media)

    def _said(self, response: Response, one: Acting) -> tuple[Said, Message]:
        """What a turn says: to the environment, and as a message."""
        text, found, problem = response.text, [], ''
        if one.tools and self._calls is not None:
            text, found, problem = self._calls.read(text)
        calls = [(call['function']['name'], json.loads(call['function']['arguments'])) for call in found]
        asked = tuple(Call(name, arguments) for name, arguments in calls)
        said = Said(text, asked, response.parts, self._done(response), problem)
        if not calls:
            return said, response.message
        # Without ids, which are of chance: results follow their calls in order.
        written = [
            {'type': 'function', 'function': {'name': name, 'arguments': arguments}} for name, arguments in calls
        ]
        return said, message_of('assistant', text, tool_calls=written)

    def _seen(self, messages: Conversation) -> Conversation:
        """What is shown, its pictures turned as those were that the policy learned from."""
        turned = {} if self.spec.space is None else self.spec.space.pictures
        if not turned:
            return messages

        def part_of(part: dict[str, Any]) -> dict[str, Any]:
            return {**part, 'image': finished(part['image'], turned)} if part['type'] == 'image' else part

        return [{**message, 'content': list(map(part_of, message['content']))} for message in messages]

    def _done(self, response: Response) -> Actions | None:
        """The steps of a turn that are to be done now, None where it says no actions."""
        if self.spec.space is None:
            return None
        found = next((part[ACTION] for part in response.parts if part['type'] == ACTION), None)
        actions = from_words(response.text, self.spec.space) if found is None else found
        return None if actions is None else actions.first(self.spec.space.executed)

    # What came of it

    def _responses(self, acting: Sequence[Acting], asked: int) -> list[Response]:
        kept = [one for one in acting if one.turns and (one.ended != 'failed' or self.on_failure == 'zero')]
        return [one.response(self.spec.merge_media) for one in kept] if len(kept) >= min(2, asked) else []


class _Saying(NamedTuple):
    """A turn that an environment is to answer."""

    one: Acting
    response: Response
    turn: Turn
    said: Said


def _live(acting: Sequence[Sequence[Acting]]) -> list[Place]:
    return [(number, which) for number, own in enumerate(acting) for which, one in enumerate(own) if one.live]


def _firsts(acting: Sequence[Sequence[Acting]]) -> list[tuple[int, Acting]]:
    """The number of each row of which an episode goes on, and the first of these."""
    live = [[one for one in own if one.live] for own in acting]
    return [(number, own[0]) for number, own in enumerate(live) if own]


def _sampling(sampling: Sampling, turn: int, places: Sequence[Place]) -> Sampling:
    """How a turn is sampled; with seeds of rows, by that of the row, of the generation and of the turn."""
    if sampling.seeds is None:
        return replace(sampling, seed=seed_of(sampling.seed, turn))
    return replace(sampling, seeds=tuple(seed_of(sampling.seeds[number], which, turn) for number, which in places))


def _said(messages: Conversation) -> list[Any]:
    return [(message['role'], [part.get('text', part['type']) for part in message['content']]) for message in messages]
