"""The page of an online run: its rollouts as a person reads them, in one file that needs no other and runs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.core.types import MEDIA_KINDS, Conversation, Message, words_of
from align_anything.models.rendering import without_beginning
from align_anything.reporting.html import render
from align_anything.reporting.online_report import numbers_of
from align_anything.reporting.step_page import StepPage
from align_anything.rollouts.experience import Rollout

PAGE_FILE = 'completions.html'


class CompletionsPage:
    """Appends each rollout to `completions.html`, sorted and coloured by the styles at its top, see `StepPage`.

    Args:
        folder: of the run.
        resume_step: step that the run goes on from; None starts afresh.
        prompts, responses: how many are shown of a rollout, and of a prompt; `file` has all of them.
    """

    def __init__(self, folder: Path, resume_step: int | None, *, prompts: int, responses: int, file: str) -> None:
        self._prompts, self._responses, self._all = prompts, responses, file
        self._page = StepPage(folder / PAGE_FILE, resume_step, self._top)

    def append(self, step: int, rollout: Rollout, prefill: Callable[[Conversation], str]) -> None:
        """Shows the first prompts of a rollout that ended at optimizer step `step`.

        `prefill` says what the prompt begins the answer to a conversation with: it is shown before each response.
        """
        shown = rollout.of(range(min(len(rollout.examples), self._prompts)))
        prompts = _prompts(shown, self._responses, prefill)
        self._page.append(render('rollout.html.jinja', step=step, summary=_summary(rollout), **prompts))

    def _top(self, earlier: str) -> str:
        counts = {'prompts': self._prompts, 'responses': self._responses}
        return render('completions.html.jinja', **counts, file=self._all, earlier=earlier)


def rewards_of(rollout: Rollout) -> dict[str, list[float]]:
    """What each response was worth, by the names that metrics have for it."""
    return {name: values.tolist() for name, values in numbers_of(rollout).items() if name.startswith('reward')}


def text_of(parts: Sequence[Mapping[str, Any]]) -> str:
    """The text of a message, with a mark for each medium in it."""
    return ''.join(f'<{part["type"]}>' if part['type'] in MEDIA_KINDS else words_of([part]) for part in parts)


def told_of(message: Message) -> dict[str, str]:
    """A turn of an episode as text, calls of tools among it."""
    calls = [call['function'] for call in message.get('tool_calls') or []]
    told = [f'{call["name"]}({json.dumps(call["arguments"], ensure_ascii=False)})' for call in calls]
    return {'role': message['role'], 'text': '\n'.join([text_of(message['content']), *told]).strip('\n')}


def _shown_turn(message: Message) -> Message:
    """A turn of an episode with its calls as text."""
    told = told_of({**message, 'content': []})['text']
    return {**message, 'content': [*message['content'], *([{'type': 'text', 'text': told}] if told else [])]}


def _summary(rollout: Rollout) -> str:
    scores = [score for score in rewards_of(rollout)['reward'] if math.isfinite(score)]
    told = f'{len(rollout.examples)} prompts, {len(rollout.scores)} responses'
    return f'{told}, reward {_mean(scores):.4g} ({min(scores):.4g} to {max(scores):.4g})' if scores else told


def _prompts(rollout: Rollout, responses: int, prefill: Callable[[Conversation], str]) -> dict[str, Any]:
    """What the template of a rollout is filled with."""
    rewards = rewards_of(rollout)
    ranges = {name: [value for value in values if math.isfinite(value)] for name, values in rewards.items()}
    shown = [_prompt(rollout.of([number]), ranges, responses) for number in range(len(rollout.examples))]
    for prompt in shown:
        prompt['prefill'] = prefill(prompt['asked']) if prompt['asked'] else ''
    for name, key in (('rank', 'mean'), ('spread_rank', 'spread')):
        for place, prompt in enumerate(sorted(shown, key=lambda prompt, key=key: prompt[key])):
            prompt[name] = place
    return {'prompts': shown, 'names': list(rewards)}


def _prompt(one: Rollout, ranges: Mapping[str, Sequence[float]], responses: int) -> dict[str, Any]:
    (example,) = one.examples
    asked, rewards = example.conversation or [], rewards_of(one)
    scores = [score for score in rewards['reward'] if math.isfinite(score)]
    rows = [
        {
            'text': text_of(response.parts),
            'parts': response.parts,
            'turns': [] if response.episode is None else list(map(_shown_turn, response.episode.messages)),
            'ended': '' if response.episode is None else response.episode.ended,
            'cells': [_cell(values[number], ranges[name]) for name, values in rewards.items()],
            'tokens': response.units,
            'finished': response.finished,
            'score': rewards['reward'][number],
        }
        for number, response in enumerate(example.responses[:responses])
    ]
    # What has no score stands last among the best.
    best = sorted(rows, key=lambda row: -row['score'] if math.isfinite(row['score']) else math.inf)
    for place, row in enumerate(best):
        row['rank'] = place
    golden = example.meta.get('ground_truth')
    return {
        'source': example.source,
        'asked': asked,
        'conversation': without_beginning(asked),
        'golden': None if golden is None else str(golden),
        'rows': rows,
        'mean': _mean(scores) if scores else math.inf,
        'spread': max(scores) - min(scores) if scores else 0.0,
    }


def _cell(value: float, shown: Sequence[float]) -> dict[str, Any]:
    """A reward, and where it lies between the lowest and the highest of its name; nowhere if all are alike."""
    if not math.isfinite(value):
        return {'text': '–', 'share': None}
    low, high = min(shown), max(shown)
    return {'text': f'{value:.4g}', 'share': round((value - low) / (high - low), 3) if low < high else None}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
