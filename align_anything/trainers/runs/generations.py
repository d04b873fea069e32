"""What a run that generates writes down: prompts with their responses, and pairs of the best and the worst."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align_anything.core.types import (
    ACTION,
    CodedMedia,
    Conversation,
    Episode,
    Example,
    Media,
    Message,
    Video,
    decoded_medium,
)
from align_anything.datasets.conversation import PART_OPTIONS
from align_anything.datasets.media import decode
from align_anything.datasets.media.writing import files_of
from align_anything.environments.steps import SUCCESS
from align_anything.models.codes import CODES
from align_anything.models.rendering import without_beginning
from align_anything.reporting.media_files import MediaFiles
from align_anything.reporting.online_report import EPISODE_NUMBERS, is_unsaid
from align_anything.rewards.base import Completion

Record = dict[str, Any]
OPTIONS = {kind: {option: key for key, option in reversed(own.items())} for kind, own in PART_OPTIONS.items()}
"""By kind of media, what a part calls the options of decoding."""
WRITTEN = (str, int, float, bool)


@dataclass(frozen=True)
class Scored:
    """The scores of the responses to one prompt.

    Attributes:
        by_name: what each reward gave to each of them; None where it abstained.
        totals: their weighted sums; None where nothing judged a response, or nothing judges at all.
    """

    by_name: Mapping[str, Sequence[float | None]]
    totals: Sequence[float | None]

    @property
    def best(self) -> int | None:
        """The number of the response with the highest score, the first of several; None without any score."""
        return self._extreme(max)

    @property
    def worst(self) -> int | None:
        """The number of that with the lowest."""
        return self._extreme(min)

    def _extreme(self, choose: Any) -> int | None:
        judged = [number for number, total in enumerate(self.totals) if total is not None]
        return choose(judged, key=lambda number: self.totals[number]) if judged else None


def record_of(
    row: int,
    example: Example,
    messages: list[Message],
    files: Sequence[Sequence[str]],
    scored: Scored,
    completions: Sequence[Completion],
    turns: Sequence[list[Message]] = (),
) -> Record:
    """Returns the line of a prompt with its responses.

    Args:
        row: its number in the data.
        example: the prompt with its responses.
        messages: the prompt as `written` makes it.
        files: the files of the media of each response.
        scored: their scores.
        completions: they as rewards see them.
        turns: of episodes, the turns of each behind the prompt, as `shown` makes them.
    """
    responses = []
    for number, response in enumerate(example.responses):
        own: Record = {'text': response.text, 'finish_reason': 'stop' if response.finished else 'length'}
        if done := [part[ACTION].plain for part in response.parts if part['type'] == ACTION]:
            own['actions'] = done
        own['units'] = response.units
        if completions[number].prefilled:
            own['prefill'] = completions[number].prefilled
        if files[number]:
            own['media'] = list(files[number])
        if response.episode is not None:
            own |= {'turns': turns[number], 'ended': response.episode.ended, 'episode': numbers_of(response.episode)}
        if scored.by_name:
            own['scores'] = {name: values[number] for name, values in scored.by_name.items()}
            own['score'] = scored.totals[number]
        responses.append(own)
    record: Record = {'row': row, 'source': example.source, **_prompt('messages', messages), 'responses': responses}
    if scored.by_name:
        record['best'] = scored.best
    return {**record, **known_of(example)}


def known_of(example: Example) -> Record:
    """Returns what a line holds of the row itself: its golden answer and the rest of its meta, where it has such."""
    answer = example.meta.get('ground_truth')
    meta = {key: value for key, value in example.meta.items() if key != 'ground_truth' and _is_plain(value)}
    return {**({'reference_answer': answer} if _is_plain(answer) else {}), **({'meta': meta} if meta else {})}


def pair_of(
    completions: Sequence[Completion], messages: list[Message], files: Sequence[Sequence[str]], scored: Scored
) -> Record | None:
    """Returns the best and the worst response to a prompt as a row of the template Preference; None for a tie.

    `completions` are the responses as rewards saw them, the other arguments those of `record_of`.
    """
    best, worst = scored.best, scored.worst
    if best is None or worst is None or not scored.totals[best] > scored.totals[worst]:
        return None
    chosen, rejected = ([_answer(completions[number], files[number])] for number in (best, worst))
    return {
        **_prompt('prompt', without_beginning(messages)),
        'chosen': chosen,
        'rejected': rejected,
        'chosen_score': scored.totals[best],
        'rejected_score': scored.totals[worst],
        'source': completions[best].source,
    }


def asked_of(example: Example, conversation: Conversation, row: int, media: MediaFiles) -> list[Message]:
    """Returns the prompt of responses as JSON can hold it: `written`, or with what an environment began with."""
    if all(response.episode is None for response in example.responses):
        return written(conversation, row, media)
    return shown(example.conversation or [], row, 'prompt', media)


def turns_of(example: Example, row: int, media: MediaFiles) -> list[list[Message]]:
    """Returns the turns of each response that is an episode, as JSON can hold them."""
    return [
        shown(response.episode.messages, row, f'turns_{number}', media)
        for number, response in enumerate(example.responses)
        if response.episode is not None
    ]


def shown(conversation: Conversation, row: int, name: str, media: MediaFiles) -> list[Message]:
    """Returns a conversation whose media are decoded as JSON can hold it, with files that `media` writes."""
    number = 0

    def part_of(part: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal number
        if part['type'] == ACTION:
            return {'type': ACTION, ACTION: part[ACTION].plain}
        kind, medium = part['type'], None if part['type'] == 'text' else decoded_medium(part)
        if medium is None:
            return {'type': 'text', 'text': part.get('text', f'[{kind}]')}
        number += 1
        suffix, content = files_of(kind, medium)[0]
        return {'type': kind, kind: media.write_file(row, f'{name}_{number}{suffix}', content)}

    return [_plain({**turn, 'content': [part_of(part) for part in turn['content']]}) for turn in conversation]


def numbers_of(episode: Episode) -> dict[str, float | None]:
    """Returns what metrics tell of an episode, by name; success and cost only where its environment told of them.

    Success is None where it has none as soon as another episode is told to have, or not to have, succeeded.
    """
    found = {name: float(number(episode)) for name, number in EPISODE_NUMBERS.items()}
    if any(turn.costs for turn in episode.turns):
        found['cost'] = episode.cost
    unsaid = {SUCCESS: None} if is_unsaid(episode) else {}
    return {**{name: value for name, value in found.items() if not math.isnan(value)}, **unsaid}


def written(conversation: Conversation, row: int, media: MediaFiles) -> list[Message]:
    """Returns a conversation whose media are not decoded as JSON can hold it.

    Files stay where they are, with what decoding them heeds; what is no file is written by `media`.
    """
    number = 0

    def part_of(part: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal number
        kind = part['type']
        if kind == ACTION:
            return {'type': ACTION, ACTION: part[ACTION].plain}
        if type(part.get(kind)) is not Media:
            return dict(part)
        number += 1
        own: Media = part[kind]
        options = {OPTIONS[kind][name]: value for name, value in own.options.items() if name in OPTIONS[kind]}
        heeded = {name: value for name, value in options.items() if type(value) in WRITTEN}
        if 'num_frames' in heeded:
            heeded = {name: value for name, value in heeded.items() if name not in ('fps', 'min_frames', 'max_frames')}
        path = own.source.get('path') if type(own.source) is dict and own.source.get('bytes') is None else own.source
        if type(path) is str:
            return {'type': kind, kind: os.path.abspath(path) if os.path.exists(path) else path, **heeded}
        if type(own.source) is dict and _is_plain(own.source):
            return {'type': kind, kind: own.source, **heeded}
        suffix, content = files_of(kind, decode(own))[0]
        return {'type': kind, kind: media.write_file(row, f'prompt_{number}{suffix}', content), **heeded}

    return [_plain({**turn, 'content': [part_of(part) for part in turn['content']]}) for turn in conversation]


def _answer(completion: Completion, files: Sequence[str]) -> Message:
    """The whole answer as a turn, its media as codes where the model wrote such, else as their files."""
    content, remaining = [], list(files)
    for part in completion.turn['content']:
        kind = part['type']
        if kind == 'text':
            content.append(part)
            continue
        if kind == ACTION:
            content.append({'type': ACTION, ACTION: part[ACTION].plain})
            continue
        own = [file for file in remaining if _stem(file) == _stem(remaining[0])]
        remaining = remaining[len(own) :]
        codes = part.get(CODES) or part.get(kind)
        if type(codes) is CodedMedia:
            content.append({'type': kind, kind: {'codes': codes.codes.tolist(), 'codec': codes.codec}})
        else:
            content.append({'type': kind, kind: own[0], **_whole(part[kind])})
    return _plain({'role': 'assistant', 'content': content})


def _whole(medium: Any) -> dict[str, int]:
    """What makes decoding give back all of a medium; videos are thinned out and scaled down otherwise."""
    if type(medium) is not Video:
        return {}
    frames, height, width = medium.frames.shape[:3]
    return {'num_frames': frames, 'max_pixels': height * width, 'total_pixels': frames * height * width}


def _stem(file: str) -> str:
    return file.rpartition('.')[0]


def _prompt(name: str, messages: list[Message]) -> Record:
    """The turns under a name, and beside them the tools that the first one bears."""
    tools = messages[0].get('tools') if messages else None
    turns = [{key: value for key, value in turn.items() if key != 'tools'} for turn in messages]
    return {name: turns, **({'tools': tools} if tools else {})}


def _plain(turn: Message) -> Message:
    """The turn with its content as a text where it is nothing else."""
    content = turn['content']
    if any(part['type'] != 'text' for part in content):
        return turn
    return {**turn, 'content': ''.join(part['text'] for part in content)}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return value is not None
