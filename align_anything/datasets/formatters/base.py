"""What every template is, hooks that turn one raw row into conversations, and all of them by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from align_anything.core.errors import DataError, SampleError
from align_anything.core.registry import Registry, nearest
from align_anything.core.user_files import look_up
from align_anything.datasets.formatters.columns import Row, as_text
from align_anything.datasets.formatters.turns import (
    Meta,
    PairSample,
    Sample,
    Turns,
    acts,
    answered_by_medium,
    says_only_text,
    text_said,
    user,
    with_its_media,
)

SUPERVISED = 'format_supervised_sample'
PREFERENCE = 'format_preference_sample'
PROMPT_ONLY = 'format_prompt_only_sample'
UNMATCHED = 'format_unmatched_supervised_sample'
CHECK_EQUAL = 'check_equal'
DIFFUSION_SUPERVISED = 'format_diffusion_supervised_sample'
DIFFUSION_PREFERENCE = 'format_diffusion_preference_sample'
HOOKS = (SUPERVISED, PREFERENCE, PROMPT_ONLY, UNMATCHED, CHECK_EQUAL)


def _fits(value: Any, default: Any) -> bool:
    """Tells whether an option's value has the type that its default shows (null stands for a column found by name)."""
    if default is None:
        return value is None or isinstance(value, str)
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    return isinstance(value, type(default))


def _answers(conversation: Turns) -> list[Any]:
    return [turn for turn in conversation if turn['role'] == 'assistant']


def _same(one: Any, other: Any) -> bool:
    """Tells whether two values are equal, samples and pixels in arrays too, which tell of each number whether it is."""
    import numpy

    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, numpy.ndarray) or isinstance(other, numpy.ndarray):
        return numpy.array_equal(one, other)
    return bool(one == other)


class BaseFormatter:
    """Turns raw rows of one kind of dataset into conversations.

    A subclass writes the hooks its columns allow. A hook returns messages in Hugging Face chat form and a `meta` dict;
    `meta['image']` (one or a list; likewise `video`, `audio`) holds the media that fill the placeholders, in order,
    `meta['tools']` the tools that may be called, and the rest of `meta` rides along to the algorithm. Empty
    conversations leave the row out, as `check_validation` does. Where the answer is one medium, a template may write
    `format_diffusion_supervised_sample` or `format_diffusion_preference_sample` instead, as align-anything has them:
    they return the prompt as text, and `meta` with the medium. Some hooks follow from others: a supervised sample from
    the preferred answer, a prompt from a supervised sample without its last answer, an unmatched sample from two rows.

    Public annotated class attributes are options: `--train_template_kwargs` sets them, and so does the constructor.

    Attributes:
        system_prompt: a system turn put before each conversation that has none.
        image_folder: where relative image paths start; over `data_cfgs.image_folder`. Likewise for video and audio.
    """

    system_prompt: str = ''
    image_folder: str = ''
    video_folder: str = ''
    audio_folder: str = ''

    _given: Mapping[str, Any] = MappingProxyType({})
    _spec = ''
    # By kind of media, the variable by which align-anything names the folder of relative paths for this template.
    _folder_variables: Mapping[str, str] = MappingProxyType({})

    def __init__(self, **options: Any) -> None:
        known = self.option_defaults()
        for name, value in options.items():
            if name not in known:
                raise DataError(
                    f"template '{self.name}' has no option '{name}'.{nearest(name, list(known))} "
                    f'Its options: {", ".join(known)}.'
                )
            if not _fits(value, known[name]):
                raise DataError(
                    f"option '{name}' of template '{self.name}' is {value!r}, "
                    f'but should be of the kind of its default {known[name]!r}.'
                )
            setattr(self, name, value)
        self._given = dict(options)

    def __reduce__(self) -> Any:
        # A class from a user's file cannot be found by module name in a spawned worker, so it travels as its spec.
        if not self._spec:
            return super().__reduce__()
        return make_formatter, (self._spec, dict(self._given))

    @classmethod
    def option_defaults(cls) -> dict[str, Any]:
        """Returns each option of this template with its default."""
        names = [name for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)]
        return {name: getattr(cls, name) for name in names if not name.startswith('_')}

    @classmethod
    def hooks(cls) -> frozenset[str]:
        """Returns the hooks this template bears, its own and those that follow from its own."""
        own = {name for name in HOOKS if cls._writes(name)}
        pairs = ((DIFFUSION_SUPERVISED, SUPERVISED), (DIFFUSION_PREFERENCE, PREFERENCE))
        own |= {ours for theirs, ours in pairs if cls._writes(theirs)}
        if PREFERENCE in own:
            own |= {SUPERVISED, CHECK_EQUAL}
        if SUPERVISED in own:
            own |= {PROMPT_ONLY, UNMATCHED}
        return frozenset(own)

    @classmethod
    def _writes(cls, hook: str) -> bool:
        return getattr(cls, hook) is not getattr(BaseFormatter, hook)

    def given(self, option: str) -> Any:
        """Returns what an option was set to, None where it was not."""
        return self._given.get(option)

    @property
    def name(self) -> str:
        """The name or file spec this template was asked for by."""
        return self._spec or type(self).__name__

    def folders(self) -> dict[str, str]:
        """Returns the folder that relative paths start from for each kind of media that has one."""
        given = {'image': self.image_folder, 'video': self.video_folder, 'audio': self.audio_folder}
        return {kind: folder for kind, folder in given.items() if folder}

    def folders_of_environment(self) -> dict[str, str]:
        """Returns the folders that environment variables name, for kinds of media without a folder of their own."""
        return {kind: os.environ[name] for kind, name in self._folder_variables.items() if os.environ.get(name)}

    def opening(self) -> Turns:
        """Returns the turns before the first user turn: the system prompt, if there is one."""
        return [{'role': 'system', 'content': self.system_prompt}] if self.system_prompt else []

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        """Returns `(conversation, meta)`; by default the conversation with the preferred answer."""
        self.require_hook(SUPERVISED)
        if self._writes(DIFFUSION_SUPERVISED):
            prompt, meta = self.format_diffusion_supervised_sample(raw_sample)
            return answered_by_medium(self._asked(prompt), meta) if prompt or meta else ([], {})
        better, _, meta = self.format_preference_sample(raw_sample)
        return better, meta

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        """Returns `(better conversation, worse conversation, meta)`."""
        self.require_hook(PREFERENCE)
        prompt, meta = self.format_diffusion_preference_sample(raw_sample)
        if not prompt and not meta:
            return [], [], {}
        better, meta = answered_by_medium(self._asked(prompt), meta, 'better_')
        worse, meta = answered_by_medium(self._asked(prompt), meta, 'worse_')
        return better, worse, meta

    def format_diffusion_supervised_sample(self, raw_sample: Row) -> tuple[str, Meta]:
        """Returns `(prompt, meta)`, the medium that answers it in `meta['image']`, likewise `audio` or `video`."""
        raise self._lacking(DIFFUSION_SUPERVISED)

    def format_diffusion_preference_sample(self, raw_sample: Row) -> tuple[str, Meta]:
        """Returns `(prompt, meta)`, the media in `meta['better_image']` and `meta['worse_image']`, likewise others."""
        raise self._lacking(DIFFUSION_PREFERENCE)

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        """Returns `(conversation, meta)` up to the turn to answer; an answer in text is `meta['ground_truth']`.

        Of an episode in which something is done, that is all before the first action.
        """
        self.require_hook(PROMPT_ONLY)
        conversation, meta = self.format_supervised_sample(raw_sample)
        acted = next((number for number, turn in enumerate(conversation) if acts(turn)), None)
        if acted is not None:
            # What is recorded of a body is not what a policy would have seen: it starts where the record does.
            return conversation[:acted], meta
        if conversation and conversation[-1]['role'] == 'assistant':
            answer, rest = with_its_media(conversation[-1], meta)
            if answer['content'] is not None and says_only_text(answer):
                rest['ground_truth'] = text_said(answer)
            return conversation[:-1], rest
        return conversation, meta

    def format_unmatched_supervised_sample(self, raw_sample_for_prompt: Row, raw_sample_for_response: Row) -> Sample:
        """Returns `(conversation, meta)`: the prompt of one row with the last answer of another."""
        self.require_hook(UNMATCHED)
        prompt, meta = self.format_prompt_only_sample(raw_sample_for_prompt)
        answered, shown = self.format_supervised_sample(raw_sample_for_response)
        if not answered:
            raise SampleError(f"template '{self.name}' gives no conversation for the row whose answer is compared")
        kept = {name: value for name, value in meta.items() if name != 'ground_truth'}
        answer, _ = with_its_media(answered[-1], shown)
        return [*prompt, answer], kept

    def check_equal(self, raw_sample: Row) -> bool:
        """Tells whether all answers of a preference row are the same, so that the row teaches nothing."""
        better, worse, _ = self.format_preference_sample(raw_sample)
        return _same(_answers(better), _answers(worse))

    def check_validation(self, raw_sample: Row) -> bool:
        """Tells whether the row is usable at all. One that is not is filtered: counted apart from rows that failed."""
        return True

    def _asked(self, prompt: Any) -> Turns:
        return [*self.opening(), user(as_text(prompt, 'the prompt'))]

    def require_hook(self, hook: str) -> None:
        """Raises `DataError`, naming the templates that have it, when this one lacks `hook`."""
        if hook not in self.hooks():
            raise self._lacking(hook)

    def _lacking(self, hook: str) -> DataError:
        others = ', '.join(templates_with(hook))
        return DataError(f"template '{self.name}' has no {hook}. Templates that have it: {others}.")


Template = type[BaseFormatter]


_TEMPLATES: Registry[Template] = Registry(
    'template',
    DataError,
    package=__package__,
    group='align_anything.templates',
    wanted='a class derived from BaseFormatter',
    is_one=lambda value: inspect.isclass(value) and issubclass(value, BaseFormatter),
)


def register_template(name: str) -> Callable[[Template], Template]:
    """Class decorator that files a formatter under `name`.

    Raises `DataError` when another class holds the name, or when the class is no `BaseFormatter`.
    """

    def decorate(template: Template) -> Template:
        if not issubclass(template, BaseFormatter):
            raise DataError(f"template '{name}': {template.__name__} must derive from BaseFormatter.")
        return _TEMPLATES.register(name)(template)

    return decorate


def get_template(name: str) -> Template:
    """Returns the formatter class called `name`, or the class `Name` of `path/to/file.py:Name`.

    Raises `DataError` with the nearest name when there is none, and when the file cannot be imported.
    """
    return look_up(name, _TEMPLATES)


def make_formatter(name: str, options: Mapping[str, Any] | None = None) -> BaseFormatter:
    """Returns an instance of the template called `name`, made with its options (the template kwargs).

    The instance can be pickled, also when its class comes from a user's file. Raises `DataError` for an unknown
    template or option.
    """
    template = get_template(name)
    given = dict(options or {})
    try:
        formatter = template(**given)
    except TypeError as error:
        raise DataError(f"template '{name}' does not take the options {sorted(given)}: {error}.") from error
    # An own constructor need not pass these on, and errors and worker processes rely on them.
    formatter._spec, formatter._given = name, given
    return formatter


def template_names() -> list[str]:
    """Returns the names of all registered templates."""
    return _TEMPLATES.names()


def usable_templates() -> dict[str, Template]:
    """Returns every template by name; one of a broken package is left out, and the log says so once."""
    return _TEMPLATES.usable()


def templates_with(hook: str) -> list[str]:
    """Returns the names of the templates that have `hook`, for instance `format_preference_sample`."""
    return [name for name, template in usable_templates().items() if hook in template.hooks()]
