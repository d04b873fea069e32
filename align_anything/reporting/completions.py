"""What an online run shows of its responses: all in a file, some on a page, on the console and in the tracker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePath

from rich.table import Table
from rich.text import Text

from align_anything.models.family import FamilySpec
from align_anything.models.rendering import without_beginning
from align_anything.reporting.completions_page import CompletionsPage, rewards_of, text_of, told_of
from align_anything.reporting.console import TrainingConsole
from align_anything.reporting.html import strip_of
from align_anything.reporting.media_files import MediaFiles
from align_anything.reporting.metrics import MetricsWriter, StepFile
from align_anything.reporting.trackers.base import Answers
from align_anything.rollouts.experience import Rollout

COMPLETIONS_FILE = 'completions.jsonl'
PROMPTS, RESPONSES = 8, 8
"""How many prompts the page and the tracker show, and how many responses to each."""
TRACKER_TEXT, CONSOLE_TEXT = 2000, 160
"""Characters of a text there; the page has all of it."""
CONSOLE_ROWS = 4


class Completions:
    """Writes the responses of a rollout to `completions.jsonl`, their media beside it, and shows some of them.

    `completions.html` shows the first prompts of each such rollout, and so do the console and the tracker.

    Args:
        output_dir: folder of the run.
        spec: the family of the policy.
        console, writer: of the run.
        resume_step: step that the run goes on from, whose later records are dropped; None starts afresh.
    """

    def __init__(
        self,
        output_dir: Path,
        spec: FamilySpec,
        console: TrainingConsole,
        writer: MetricsWriter,
        resume_step: int | None,
    ) -> None:
        self._spec = spec
        self._console, self._writer = console, writer
        self._folder, self._media = output_dir, MediaFiles(output_dir, resume_step)
        self._file = StepFile(output_dir / COMPLETIONS_FILE, resume_step)
        self._page = CompletionsPage(
            output_dir, resume_step, prompts=PROMPTS, responses=RESPONSES, file=COMPLETIONS_FILE
        )

    def write(self, step: int, rollout: Rollout) -> None:
        """Writes and shows the responses that were learned from up to optimizer step `step`."""
        prompts = [rollout.of([number]) for number in range(len(rollout.examples))]
        files = [self._append(step, number, one) for number, one in enumerate(prompts, 1)]
        if not prompts:
            return  # all rows of this rank fell out
        self._page.append(step, rollout, self._spec.prefill)
        answers = [self._answers(*shown) for shown in zip(prompts[:PROMPTS], files, strict=False)]
        self._console.show(_table(f'Responses after step {step}', answers))
        self._writer.show(step, answers)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, step: int, prompt: int, one: Rollout) -> list[list[str]]:
        """Writes the responses to the `prompt`th of the rollout, and returns the files of the media of each."""
        (example,) = one.examples
        files = []
        for number, response in enumerate(example.responses):
            turns = [] if response.episode is None else response.episode.messages
            parts = [part for message in turns for part in message['content']] or response.parts
            media = self._media.write(step, f'{prompt}_{number + 1}', parts)
            files.append(media)
            record = {
                'source': example.source,
                'prompt': text_of(self._spec.decode(example.prompt)),
                'response': text_of(response.parts),
                **({'media': media} if media else {}),
                **({'turns': list(map(told_of, turns)), 'ended': response.episode.ended} if turns else {}),
                'finished': response.finished,
                'reward': float(one.scores[number]),
                'rewards': {name: _given(float(values[number])) for name, values in one.rewards.items()},
            }
            self._file.append(step, record)
        return files

    def _answers(self, one: Rollout, files: Sequence[Sequence[str]]) -> Answers:
        (example,) = one.examples
        asked = example.conversation or []
        conversation, begun = without_beginning(asked), self._spec.prefill(asked) if asked else ''
        responses = example.responses[:RESPONSES]
        sounds = [[name for name in own if PurePath(name).suffix == '.wav'] for own in files[:RESPONSES]]
        return Answers(
            prompt=shortened(text_of(conversation[-1]['content'] if conversation else []), TRACKER_TEXT),
            picture=strip_of(conversation),
            responses=[shortened(begun + text_of(each.parts), TRACKER_TEXT) for each in responses],
            pictures=[strip_of([each.message]) for each in responses],
            sounds=[self._folder / own[0] if own else None for own in sounds],
            rewards={name: values[:RESPONSES] for name, values in rewards_of(one).items()},
        )


def shortened(text: str, longest: int) -> str:
    """The text, with its middle left out where it is longer."""
    half = longest // 2
    return text if len(text) <= longest else f'{text[:half]} … {text[-half:]}'


def _given(value: float) -> float | None:
    """The number that a reward gave; None where it abstained."""
    return None if math.isnan(value) else value


def _shown(value: float) -> str:
    return '–' if math.isnan(value) else f'{value:.4g}'


def _table(title: str, answers: Sequence[Answers]) -> Table:
    """Some of the responses, spread over the prompts."""
    rows = [row for answered in answers for row in answered.rows()]
    table = Table(title=title, show_lines=True)
    for name in ('prompt', 'response', *answers[0].rewards):
        table.add_column(Text(name))
    for prompt, response, *rewards in rows[:: -(-len(rows) // CONSOLE_ROWS)]:
        texts = [Text(_line(shortened(text, CONSOLE_TEXT))) for text in (prompt, response)]
        table.add_row(*texts, *map(_shown, rewards))
    return table


def _line(text: str) -> str:
    """The text on one line, without anything that a terminal would obey."""
    return ''.join(character if character.isprintable() else ' ' for character in text)
