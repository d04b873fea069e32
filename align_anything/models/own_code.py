"""What families whose model class comes with the checkpoint share: they write the tokens of media themselves.

Their classes exist only where `trust_remote_code` lets a checkpoint's code run, and their processors agree on little,
so media go through the components of a processor and not through its call.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Conversation, MediaKind, Piece
from align_anything.models.encoding import RunEncoder
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import Run, TrainOn

MARKS = 'media_marks'
"""Name of the tensor that says of each token whether features stand there: `IMAGE`, `AUDIO` or zero."""
IMAGE, AUDIO = 1, 2


@dataclass(frozen=True)
class NumberedRun(Run):
    """A run that knows how many images stand in front of it."""

    before: int = 0

    def behind(self, opening: Run) -> Run:
        """Returns what follows `opening`, the beginning of this run, with its images before it."""
        return replace(Run.behind(self, opening), before=self.before + len(by_kind(opening, 'image')))


@dataclass(frozen=True)
class Written:
    """The tokens of one medium, and at which of them its features stand."""

    ids: Sequence[int]
    marks: Sequence[int]


class OwnCodeEncoder(RunEncoder):
    """Tokenises the text between media, and puts between it what the family writes for each medium."""

    def written(self, run: Run, first_number: int) -> tuple[list[Written], dict[str, Tensor]]:
        """Returns the tokens of each medium of a run, in order, and their tensors; images count from the number."""
        raise NotImplementedError

    def spelled(self, run: Run, first_number: int) -> str:
        """Returns the text of a run as the checkpoint's own code writes it, placeholders kept."""
        return run.text

    def text_ids(self, text: str, first: bool, behind_medium: bool) -> list[int]:
        """Tokenises a stretch of text: the `first` of a conversation, one behind a medium, or another."""
        return self.tokenizer(text)['input_ids'] if first else self._text_ids(text, False)

    def piece(self, run: Run, first: bool = False) -> Piece:
        """Encodes one run. Raises SampleError when placeholders and media disagree or a medium is refused."""
        if run.token is not None:
            return super().piece(run, first)
        self._check_placeholders(run)
        number = (run.before if isinstance(run, NumberedRun) else 0) + 1
        try:
            media, tensors = self.written(run, number) if run.media else ([], {})
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError, AssertionError) as error:
            raise SampleError(f'the own code of this checkpoint refuses a medium of this turn: {error!r}') from error
        ids: list[int] = []
        marks: list[int] = []
        spelled, media_marks = self.spelled(run, number), '|'.join(map(re.escape, self.placeholders.values()))
        for place, text in enumerate(re.split(media_marks, spelled) if media_marks else [spelled]):
            if place:
                ids.extend(media[place - 1].ids)
                marks.extend(media[place - 1].marks)
            found = self.text_ids(text, first and place == 0, place > 0)
            ids.extend(found)
            marks.extend([0] * len(found))
        marked = torch.tensor(marks, dtype=torch.long)
        counts = dict(Counter(kind for kind, _ in run.media))
        weights = torch.where(marked > 0, 0.0, run.weight)
        return Piece(torch.tensor(ids, dtype=torch.long), weights, tensors, counts, {MARKS: marked})


class OwnCodeSpec(FamilySpec):
    """Rules of a family whose attention is its own, so that rows hold one sequence each."""

    brings_processor: ClassVar[bool] = True
    encoder_class = OwnCodeEncoder
    layouts: ClassVar[tuple[str, ...]] = ('padded',)
    placeholders: ClassVar[Mapping[MediaKind, str]] = {}
    """The text that stands for one medium of each kind that the family reads."""
    feature_token: ClassVar[str] = ''
    """The token at which features stand."""

    def kinds_read(self) -> frozenset[MediaKind]:
        """Returns the kinds of media that the family reads."""
        return frozenset(self.placeholders)

    def placeholder(self, kind: MediaKind) -> str | None:
        """Returns the text that stands for one medium until it is encoded."""
        return self.placeholders[kind]

    def placeholder_ids(self) -> frozenset[int]:
        """Returns the id of the token at which the model puts media features."""
        return frozenset([self.tokenizer.convert_tokens_to_ids(self.feature_token)])

    def render(
        self, conversation: Conversation, train_on: TrainOn = 'all_assistant', start: int = 0
    ) -> list[list[Run]]:
        """Returns sequences of runs, each run with the number of images in front of it."""
        return [_numbered(runs) for runs in super().render(conversation, train_on, start)]

    def generation_inputs(self, prompts: Sequence[Piece]) -> dict[str, Any]:
        """Returns the arguments of `generate()` for text; raises ModelError for a family that reads media."""
        if self.placeholders:
            raise ModelError(
                f"model_type '{self.model_type}' generates through code of its checkpoint, which takes other arguments "
                'and is not called here: choose an algorithm that does not generate.'
            )
        return super().generation_inputs(prompts)


def _numbered(runs: Sequence[Run]) -> list[Run]:
    before, numbered = 0, []
    for run in runs:
        numbered.append(NumberedRun(run.text, run.weight, run.media, run.token, run.coded, before))
        before += len(by_kind(run, 'image'))
    return numbered


def stretches(marks: Tensor, mark: int) -> list[Tensor]:
    """Returns for each row of `marks` `(rows, length)` where the stretches of `mark` begin and end, `(number, 2)`."""
    edges = torch.nn.functional.pad((marks == mark).long(), (1, 1)).diff(dim=1)
    begins, ends = (edges == 1), (edges == -1)
    return [
        torch.stack([begin.nonzero().flatten(), end.nonzero().flatten()], dim=1)
        for begin, end in zip(begins, ends, strict=True)
    ]


def by_kind(run: Run, kind: MediaKind) -> list[Any]:
    """Returns the media of one kind in a run, in order."""
    return [item for found, item in run.media if found == kind]
