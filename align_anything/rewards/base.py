"""Numbers for responses: reward functions by name, their options, and the one way to call them."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from align_anything.configs.options import checked_options
from align_anything.core.errors import FOREIGN_FAULTS, AlignAnythingError, RewardError
from align_anything.core.lent import Lent
from align_anything.core.registry import Registry
from align_anything.core.thoughts import opened_thought
from align_anything.core.types import Conversation, Episode, MediaKind, Message, Skipped, words_of
from align_anything.core.user_files import look_up
from align_anything.rewards import functions
from align_anything.rewards.coroutines import result_of
from align_anything.rewards.messages import text_of


@dataclass(frozen=True)
class Completion:
    """A response to be rewarded.

    Attributes:
        conversation: the messages before the response in Hugging Face chat form, media decoded: those of the prompt,
            and of an episode its earlier turns.
        message: the response as a further message, media decoded. Special tokens in its text are what the policy chose;
            only those that end it are left out.
        prefix: the text between the last message and the response, such as `<|im_start|>assistant\n`, and where the
            prompt begins the answer, the beginning.
        prefill: the end of `prefix` that belongs to the answer: what the template begins it with, such as `<think>\n`,
            and the assistant turn of the row that the response goes on from. None is a thought that `prefix` opens.
        meta: the row's `meta`, untouched; `ground_truth` in it is the golden answer where the dataset has one.
        length: units of the response, which for text are tokens.
        finished: False when the response was clipped at the length limit.
        source: the row the prompt came from.
        episode: of a response in an environment, all that came of it; `message` is then the last turn of the policy.
    """

    conversation: Conversation
    message: Message
    meta: Mapping[str, Any]
    length: int
    finished: bool
    source: str
    prefix: str = ''
    prefill: str | None = None
    episode: Episode | None = None

    @property
    def response(self) -> str:
        """Text of the response: what the policy wrote."""
        return words_of(self.message['content'])

    @property
    def prefilled(self) -> str:
        """The beginning of the answer that stands in the prompt; empty where the policy wrote all of it."""
        return opened_thought(self.prefix) if self.prefill is None else self.prefill

    @property
    def answer(self) -> str:
        """Text of the whole answer, as it stands in the conversation: what was prefilled, and the response."""
        return self.prefilled + self.response

    @property
    def turn(self) -> Message:
        """The whole answer as a message."""
        return {**self.message, 'content': [*_text(self.prefilled), *self.message['content']]}


Values = list[float | None]
"""A finite number for each completion, None for one that is not judged."""

RewardFunction = Callable[..., Values | Awaitable[Values]]
"""`(completions: Sequence[Completion], *, option=default, …) -> Values`, `def` or `async def`."""

Judge = Callable[[Sequence[Completion]], Values]
LARGEST = 3.4028234663852886e38
"""The largest number in float32."""
ROWS_NAMED = 5
SERVICE = 'service'
"""What metrics call rewards that are no functions."""


@dataclass(frozen=True)
class Reward:
    """One source of rewards.

    Attributes:
        name: what metrics call it.
        weight: its share in the score; a cost has none.
        judge: gives a number to each completion, or None where it abstains; every rank calls it with as many batches.
        unread: what its last call could not read, on all ranks, and gave a score that the settings say.
    """

    name: str
    weight: float
    judge: Judge
    unread: Callable[[], Sequence[Skipped]] = tuple


_REWARDS: Registry[RewardFunction] = Registry(
    'reward',
    RewardError,
    package=functions.__name__,
    group='align_anything.rewards',
    wanted='a function',
    is_one=inspect.isfunction,
)
LENT: Lent[RewardFunction] = Lent()
"""Functions of this process by the names that `reward_functions` has for them; they go before the registered ones."""
_NEEDS: dict[str, Mapping[str, str]] = {}
_READS: dict[str, frozenset[MediaKind]] = {}


class NoGroundTruth(RewardError):
    """A golden answer was wanted of a row that has none."""


def register_reward(
    name: str, needs: Mapping[str, str] | None = None, reads: Collection[MediaKind] = ()
) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator that files a reward function under `name`.

    `needs` are packages that it imports when it is called, each with the extra of this package that brings it:
    `get_reward` refuses the function without them. `reads` are the kinds of media that it judges, where it judges
    nothing else: a run whose responses hold none of them refuses it. Raises `RewardError` when another one holds the
    name.
    """

    def decorate(function: RewardFunction) -> RewardFunction:
        _REWARDS.register(name)(function)
        _NEEDS[name], _READS[name] = needs or {}, frozenset(reads)
        return function

    return decorate


def get_reward(name: str) -> RewardFunction:
    """Returns the reward function called `name`, or the function `name` of `path/to/file.py:name`.

    What is lent under the name goes first. Raises `RewardError` with the nearest name when there is none, when the file
    cannot be imported, and when a package is missing that the function needs.
    """
    lent = LENT.get(name)
    if lent is not None:
        return lent
    function = look_up(name, _REWARDS)
    for package, extra in _NEEDS.get(name, {}).items():
        if importlib.util.find_spec(package) is None:
            raise RewardError(f"reward '{name}' needs {package}: pip install 'align-anything[{extra}]'.")
    return function


def kinds_read(name: str) -> frozenset[MediaKind]:
    """Returns the kinds of media that a reward function judges and nothing else, none where it says none."""
    return frozenset() if LENT.get(name) else _READS.get(name, frozenset())


def reward_names() -> list[str]:
    """Returns the names of all registered reward functions."""
    return _REWARDS.names()


def check_options(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], what: str = 'reward'
) -> dict[str, Any]:
    """Returns all options of a reward function: those given, in the types that it declares, and its defaults.

    Its options are its keyword-only parameters; one without a default must be given. `what` is what messages call it.

    Raises:
        SettingsError: unknown or missing options, or values of another type; names what the function takes.
    """
    return checked_options(f"{what} '{name}'", function, options)


def call_reward(
    name: str, function: RewardFunction, completions: Sequence[Completion], options: Mapping[str, Any]
) -> Values:
    """Returns the reward of each completion, None where the function abstains. The function is called once.

    Args:
        name: what the function goes by, for messages.
        function: the reward function.
        completions: the responses to reward.
        options: its options, as `check_options` returns them.

    Raises:
        RewardError: the function raised, which names the rows it was given; or what it returned is not one number
            for each completion that is finite in float32, or None.
    """
    if not completions:
        return []  # the share of a rank whose rows all fell out; foreign code need not expect that
    return check_values(f"reward '{name}'", _call(name, function, completions, options), completions)


def check_values(what: str, values: Any, completions: Sequence[Completion]) -> Values:
    """Returns `values` as floats, None where there is no value.

    Raises `RewardError` unless they are one number for each completion, or None, finite in float32, which scores have.
    """
    if not isinstance(values, (list, tuple)):
        raise RewardError(f'{what} returned {type(values).__name__}, but should return a list of numbers.')
    if len(values) != len(completions):
        raise RewardError(f'{what} returned {len(values)} number(s) for {len(completions)} completion(s).')
    return [_checked(what, value, completion) for value, completion in zip(values, completions, strict=True)]


def _checked(what: str, value: Any, completion: Completion) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real):
        raise RewardError(f'{what} gave {type(value).__name__} to {completion.source}, not a finite number or None.')
    try:
        number = float(value)
    except OverflowError as error:  # of an integer or a fraction
        raise RewardError(
            f'{what} gave a number to {completion.source} that no float can hold: scale it down.'
        ) from error
    if not math.isfinite(number):
        raise RewardError(f'{what} gave {number} to {completion.source}, not a finite number.')
    if abs(number) > LARGEST:
        raise RewardError(f'{what} gave {number:g} to {completion.source}, which float32 cannot hold: scale it down.')
    return number


def check_scores(scores: Sequence[float], completions: Sequence[Completion]) -> None:
    """Raises `RewardError` for a weighted sum of rewards, in float32, that is not finite."""
    for score, completion in zip(scores, completions, strict=True):
        if not math.isfinite(score):
            raise RewardError(
                f'the weighted sum of the rewards of {completion.source} is {score} in float32: scale reward_weights, '
                'or the rewards, down.'
            )


def ground_truth(completion: Completion) -> str:
    """Returns the golden answer of the row as text. Raises `NoGroundTruth` when the row has none."""
    value = completion.meta.get('ground_truth')
    text = _as_text(value)
    if text is None:
        raise NoGroundTruth(
            f"{completion.source} has no golden answer: meta['ground_truth'] is no text but {str(value)[:60]!r}. Use a "
            'template that gives one, such as Math-Zero-RL, or a reward that needs none.'
        )
    return text


def text_asked_for(completion: Completion, column: str | None) -> str:
    """Returns the text in a `column` of the row, as `meta` has it; of None the text of the last user turn.

    Raises `RewardError` when there is none.
    """
    if column is None:
        text, where = text_of(completion.conversation), 'its last user turn'
    else:
        text, where = _as_text(completion.meta.get(column)) or '', f"meta['{column}']"
    if not text.strip():
        raise RewardError(
            f'{completion.source} has no text in {where} that its response could be compared with. Name the column '
            'that has it (option column), and keep it: keep_columns of the template Prompts, or meta of your own one.'
        )
    return text


def _as_text(value: Any) -> str | None:
    """The text of a value of `meta`, None where it has none."""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):  # a turn of a conversation, in parts
        value = ''.join(part['text'] for part in value if part['type'] == 'text')
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and value.strip() else None


def _text(text: str) -> list[dict[str, Any]]:
    return [{'type': 'text', 'text': text}] if text else []


def _call(name: str, function: RewardFunction, completions: Sequence[Completion], options: Mapping[str, Any]) -> Any:
    """Returns what the function returns of one call: a second one may cost money, or fail for another reason."""
    try:
        values = function(completions, **options)
        return result_of(values) if inspect.iscoroutine(values) else values
    except AlignAnythingError:
        raise
    except FOREIGN_FAULTS as error:
        raise RewardError(
            f"reward '{name}' failed on {_rows(completions)}: {type(error).__name__}: {error}."
        ) from error


def _rows(completions: Sequence[Completion]) -> str:
    """Names the rows of completions, the first few of many."""
    sources = list(dict.fromkeys(completion.source for completion in completions))
    shown = ', '.join(sources[:ROWS_NAMED]) + (' …' if len(sources) > ROWS_NAMED else '')
    return shown if len(completions) == 1 else f'{len(completions)} completions, of {shown}'
