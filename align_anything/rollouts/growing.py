"""An episode while it goes on: what was asked, said and shown in it, and the response that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from align_anything.core.types import Conversation, Episode, Example, Piece, Response, Turn, Unexpanded
from align_anything.environments.pool import EpisodeFailed, Seat
from align_anything.environments.steps import SUCCESS
from align_anything.models.encoding import Merge, join


@dataclass
class Acting:
    """An episode that grows, in the environment at `seat`, of the row that `source` names."""

    seat: Seat
    source: str
    asked: Conversation = field(default_factory=list)
    prompt: Piece | None = None
    unexpanded: Unexpanded | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    rewarded: bool = False
    succeeds: bool | None = None
    pieces: list[Piece] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    messages: Conversation = field(default_factory=list)
    ended: Literal['done', 'turns', 'tokens', 'failed'] | None = None
    score: float | None = None
    unscored: bool = False
    reason: str = ''
    trace: str = ''

    @property
    def live(self) -> bool:
        """Whether it goes on."""
        return self.ended is None

    @property
    def is_judged(self) -> bool:
        """Whether its environment gave it anything."""
        return self.score is not None or any(turn.reward is not None for turn in self.turns)

    @property
    def length(self) -> int:
        """Its tokens, those of the prompt included."""
        return len(self.prompt or ()) + sum(map(len, self.pieces))

    def example(self, merge: Merge) -> Example:
        """What the next turn follows, as a prompt."""
        assert self.prompt is not None
        prompt = join([self.prompt, *self.pieces], merge)
        return Example(prompt, [], self.source, conversation=self.asked, unexpanded=self.unexpanded)

    def end(self, how: Literal['done', 'turns', 'tokens']) -> None:
        """Ends it; its environment is yet to score it."""
        self.ended, self.unscored = how, True

    def take_score(self, score: float | None | EpisodeFailed) -> None:
        """What the environment says of the episode that ended."""
        self.unscored = False
        if type(score) is EpisodeFailed:
            self.fail(str(score), score.trace)
            return
        self.score = score
        if self.ended != 'done' and self.rewarded and not self.is_judged:
            # It never came to be judged.
            self.score = 0.0

    def fail(self, reason: str, trace: str = '') -> None:
        """Ends it where its environment failed, or what that shows cannot be read."""
        self.ended, self.unscored, self.reason, self.trace = 'failed', False, reason, trace

    def response(self, merge: Merge) -> Response:
        """All of it as one response."""
        assert self.prompt is not None and self.ended is not None
        whole, turns, score = join(self.pieces, merge), self._told(), self.score
        if self.ended == 'failed':
            turns, score = [replace(turn, reward=None, costs={}) for turn in turns], 0.0
        sampled = [piece for piece in self.pieces if type(piece) is Response]
        return Response(
            ids=whole.ids,
            weights=whole.weights,
            media=whole.media,
            media_counts=whole.media_counts,
            token_tensors=whole.token_tensors,
            per_unit={name: torch.cat([piece.per_unit[name] for piece in sampled]) for name in sampled[0].per_unit},
            finished=self.ended == 'done',
            version=sampled[-1].version,
            parts=sampled[-1].parts,
            episode=Episode(self.prompt, self.asked, self.messages, tuple(turns), self.ended, score),
        )

    def _told(self) -> list[Turn]:
        """The turns with what was told of success: of an episode that did not end by itself, that it had none.

        Only where its environment would say so; where it says nothing of itself, metrics see to it.
        """
        turns = self.turns
        if self.ended == 'failed':
            turns = [replace(own, info={k: v for k, v in own.info.items() if k != SUCCESS}) for own in turns]
        if self.ended == 'done' or self.succeeds is None or any(own.info.get(SUCCESS) is not None for own in turns):
            return turns
        return [*turns[:-1], replace(turns[-1], info={**turns[-1].info, SUCCESS: False if self.succeeds else None})]
