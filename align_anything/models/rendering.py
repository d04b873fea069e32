"""Conversations to runs of text, with the loss weight of each run set while it is rendered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.logging import get_logger
from align_anything.core.types import MEDIA_KINDS, Conversation, MediaKind, Message

TrainOn = Literal['all_assistant', 'last', 'all']

MARK = 'Zq7Marker'

# The generation prompt ends without the space that answers begin with: most vocabularies hold the space and the word in
# one token, which is what the model must learn to write.
DEFAULT_TEMPLATE = (
    '{% for message in messages %}'
    "{{ message['role'].upper() + ': ' + message['content'] + '\n' }}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

logger = get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """A stretch of a rendered conversation that is tokenised on its own.

    Attributes:
        text: what the chat template wrote; empty when `token` is given.
        weight: loss weight of its tokens, media placeholders excepted.
        media: `(kind, decoded object)` of the media that stand in it, in order.
        token: a single token that stands for the run, such as the end-of-turn token.
    """

    text: str
    weight: float
    media: tuple[tuple[str, Any], ...] = ()
    token: int | None = None


def media_of(messages: Conversation) -> tuple[tuple[str, Any], ...]:
    """Returns the media parts of the messages in order, as `(kind, object)`."""
    return tuple(
        (part['type'], part[part['type']])
        for message in messages
        for part in message['content']
        if part['type'] in MEDIA_KINDS
    )


def text_of(message: Message) -> str:
    """Returns the text parts of a message, joined."""
    return ''.join(part['text'] for part in message['content'] if part['type'] == 'text')


def without_beginning(messages: Conversation) -> Conversation:
    """Returns the messages without the beginning of an answer that generation goes on from, a turn marked `prefix`."""
    return messages[:-1] if messages and messages[-1].get('prefix') else messages


def trained_turns(conversation: Conversation, train_on: TrainOn, start: int = 0) -> list[int]:
    """Returns the numbers of the assistant turns to train on, from turn number `start` on."""
    turns = [number for number in range(start, len(conversation)) if conversation[number]['role'] == 'assistant']
    return turns[-1:] if train_on == 'last' else turns


def require_answers(conversation: Conversation, train_on: TrainOn, start: int) -> None:
    """Raises SampleError when one of the answers to train on, from turn number `start` on, says nothing."""
    for turn in trained_turns(conversation, train_on, start):
        if all(part['type'] == 'text' and not part['text'].strip() for part in conversation[turn]['content']):
            raise SampleError('the answer is empty')


def require_written(
    conversation: Conversation, train_on: TrainOn, start: int, emitted: Set[MediaKind], writer: str
) -> None:
    """Raises SampleError when one of the answers to train on holds media of a kind that is not among the `emitted`.

    Their tokens would weigh nothing, and the model would learn to open and close media with nothing in them. `writer`
    says who does not write them, as in `models of type 'llava' write`.
    """
    for turn in trained_turns(conversation, train_on, start):
        kinds = {part['type'] for part in conversation[turn]['content']} & set(MEDIA_KINDS) - emitted
        if kinds:
            raise SampleError(
                f'turn {turn} is an answer to train and holds {" and ".join(sorted(kinds))} media, but {writer} no '
                f'{" and no ".join(sorted(kinds))}: put the media into a user turn, set data_cfgs.train_on: last if a '
                'later answer is what you train, or choose a model family and a pair that write them'
            )


def first_differing_turn(conversations: Sequence[Conversation]) -> int:
    """Returns the number of the first turn in which conversations differ, an answer in each of them.

    Media are the same when they are the same decoded object. Raises SampleError when the conversations are equal,
    when one ends where others go on, or when they first differ at a turn that is no answer.
    """
    first, others = conversations[0], conversations[1:]
    at = next(
        (
            turn
            for turn, message in enumerate(first)
            if any(turn == len(other) or not _same(message, other[turn]) for other in others)
        ),
        len(first),
    )
    if any(at == len(conversation) for conversation in conversations):
        same = all(len(conversation) == at for conversation in conversations)
        raise SampleError(
            'the answers are equal, so there is nothing to prefer'
            if same
            else f'one of the conversations ends with turn {at - 1}, where the other goes on: an answer is missing'
        )
    roles = {conversation[at]['role'] for conversation in conversations}
    if roles != {'assistant'}:
        raise SampleError(
            f'the conversations differ in turn {at} ({" and ".join(sorted(roles))}), before the answers to compare: '
            'both must have the same prompt'
        )
    return at


def _same(one: Message, other: Message) -> bool:
    if one['role'] != other['role'] or len(one['content']) != len(other['content']):
        return False
    return all(
        mine['type'] == theirs['type']
        and (mine['text'] == theirs['text'] if mine['type'] == 'text' else mine[mine['type']] is theirs[theirs['type']])
        for mine, theirs in zip(one['content'], other['content'], strict=True)
    )


def _compact(text: str) -> str:
    return ''.join(text.split())


class ChatRenderer:
    """A chat template and what is known of it: the form of its messages, its generation prompt, its end of a turn.

    Picklable. `template` is the Jinja text in force; `end_of_turn_id` the token that closes an assistant turn.
    """

    def __init__(self, tokenizer: Any, processor: Any, template: str | None, placeholders: Mapping[str, str]) -> None:
        """Tries the template on a probe.

        Args:
            tokenizer: the tokenizer, also when there is a processor.
            processor: the processor of a family with media, else None.
            template: the Jinja text; None for the default format `ROLE: text`.
            placeholders: the text that stands for one medium of each kind.

        Raises:
            ModelError: the template shows neither plain strings nor lists of parts, or nothing of the assistant.
        """
        self.tokenizer = tokenizer
        self._source = tokenizer if processor is None else processor
        self._placeholders = dict(placeholders)
        if template is None:
            template = self._default_template()
        self.template = template
        # Text templates mostly paste `content` as it is; templates of multimodal models walk through its parts.
        forms = (True, False) if processor is not None else (False, True)
        self._parts = next((form for form in forms if self._shows_text(form)), None)
        if self._parts is None:
            raise ModelError(
                'The chat template of this checkpoint shows neither a text nor a list of parts. '
                'Give another one with model_cfgs.chat_template (a path or the Jinja text).'
            )
        prompt = [{'role': 'user', 'content': [{'type': 'text', 'text': 'x'}]}]
        try:
            plain, head, full = self.text(prompt), self.text(prompt, True), self.text([*prompt, _answer(MARK)])
        except SampleError as error:
            raise ModelError(f'{error}. Give another template with model_cfgs.chat_template.') from error
        if MARK.lower() not in full.lower():
            raise ModelError(
                'The chat template shows no text of the assistant, so there would be nothing to train on. '
                'Give another one with model_cfgs.chat_template (a path or the Jinja text).'
            )
        self.generation_prompt = head[len(plain) :] if head.startswith(plain) else ''
        self._tail = full.rpartition(MARK)[2]
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        specials |= {tokenizer.eos_token} - {None}
        self._special = re.compile('|'.join(map(re.escape, sorted(specials, key=len, reverse=True))) or r'(?!)')
        end = self._special.search(self._tail)
        self.end_of_turn_id: int | None = (
            tokenizer.convert_tokens_to_ids(end.group()) if end else tokenizer.eos_token_id
        )
        if self.end_of_turn_id is None:
            raise ModelError(
                'Neither the chat template nor the tokenizer has a token that ends an answer, so the model could never '
                'learn to stop. Give model_cfgs.chat_template, or set eos_token in tokenizer_config.json.'
            )

    def text(self, messages: Conversation, add_generation_prompt: bool = False) -> str:
        """Renders messages whose content is a list of parts. Raises SampleError when the template refuses them."""
        from jinja2 import TemplateError

        try:
            return self._source.apply_chat_template(
                [self._shaped(message, bool(self._parts)) for message in messages],
                chat_template=self.template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ', '.join(message['role'] for message in messages) or 'none'
            raise SampleError(f'the chat template refuses this conversation (roles: {roles}): {error}') from error

    def render_prompt(self, messages: Conversation) -> Run:
        """Returns the one run that generation starts from; with the beginning of the answer, if `messages` end so."""
        return Run(self._prompt(messages), 0.0, media_of(messages))

    def _prompt(self, messages: Conversation) -> str:
        before = without_beginning(messages)
        prompt = self.text(before, add_generation_prompt=True)
        if before is messages:
            return prompt
        content, full = text_of(messages[-1]), self.text(messages)
        # As answers are rendered to be trained, unless a template takes it for a whole one, without a thought for one.
        answer = self._split(messages, full[len(prompt) :])[0] if full.startswith(prompt) else content
        return prompt + (answer if _compact(answer) == _compact(content) else content)

    def generation_prefix(self, messages: Conversation) -> str:
        """Returns what the template writes behind the last message for an answer to begin with."""
        plain, prompt = self.text(without_beginning(messages)), self._prompt(messages)
        return prompt[len(plain) :] if prompt.startswith(plain) else ''

    def render(self, conversation: Conversation, train_on: TrainOn = 'all_assistant', start: int = 0) -> list[Run]:
        """Returns the runs up to the end of the last assistant turn; the first is the prompt of the first trained turn.

        Turns before number `start` are part of the prompt.

        Raises SampleError when there is no assistant turn, when the template refuses the conversation, changes the
        answer, or writes earlier turns differently once later ones follow.
        """
        turns = trained_turns(conversation, train_on, start)
        if not turns:
            raise SampleError('the conversation has no assistant turn, so there is nothing to train on')
        prompt_weight = 1.0 if train_on == 'all' else 0.0
        runs: list[Run] = []
        done, begin = '', 0
        for turn in turns:
            prompt = self.render_prompt(conversation[:turn])
            full = self.text(conversation[: turn + 1])
            if not prompt.text.startswith(done):
                raise SampleError(
                    'the chat template rewrites earlier turns once later ones follow (many drop the reasoning of '
                    'earlier answers), so not all of them can be trained in one sequence. Set data_cfgs.train_on: last '
                    'to train the last answer after the history as the template writes it.'
                )
            if not full.startswith(prompt.text):
                raise SampleError(
                    f'the chat template opens an answer with {self.generation_prompt!r} for generation but writes '
                    'finished answers differently, so they cannot be trained as they are generated. '
                    'Give a template with model_cfgs.chat_template.'
                )
            answer, end, rest = self._split(conversation[: turn + 1], full[len(prompt.text) :])
            runs.append(Run(prompt.text[len(done) :], prompt_weight, media_of(conversation[begin:turn])))
            runs.append(Run(answer, 1.0, media_of(conversation[turn : turn + 1])))
            runs.append(Run('', 1.0, token=self.tokenizer.convert_tokens_to_ids(end) if end else self.end_of_turn_id))
            done, begin = prompt.text + answer + end, turn + 1
        if prompt_weight and rest:
            runs.append(Run(rest, prompt_weight))
        return runs

    def _split(self, messages: Conversation, segment: str) -> tuple[str, str, str]:
        """Splits a rendered answer into the text to learn, the text of the end-of-turn token, and what is left."""
        content = text_of(messages[-1])
        tail = self._tail
        if not segment.endswith(tail):
            # A tail can depend on the turn's position in the conversation; ask for this very one.
            tail = self.text([*messages[:-1], _answer(MARK)]).rpartition(MARK)[2]
        if not segment.endswith(tail):
            raise SampleError(f'the chat template ends this answer in an unknown way: {segment[-40:]!r}')
        answer = segment[: len(segment) - len(tail)]
        if _compact(content) not in _compact(self.generation_prompt + answer):
            raise SampleError(
                f'the chat template changes the answer: {content[:60]!r} became {answer[:60]!r}. '
                'Give a template with model_cfgs.chat_template.'
            )
        end = self._special.search(tail)
        if end is None:
            return answer, '', tail
        return answer + tail[: end.start()], end.group(), tail[end.end() :]

    def _shaped(self, message: Message, parts: bool) -> Message:
        if parts:
            content: Any = [part if part['type'] == 'text' else {'type': part['type']} for part in message['content']]
        else:
            content = ''.join(
                part['text'] if part['type'] == 'text' else self._placeholder(part['type']) + '\n'
                for part in message['content']
            )
        return {**message, 'content': content}

    def _placeholder(self, kind: str) -> str:
        if kind not in self._placeholders:
            raise SampleError(f'this model takes no {kind}')
        return self._placeholders[kind]

    def _shows_text(self, parts: bool) -> bool:
        self._parts = parts
        try:
            shown = self.text([{'role': 'user', 'content': [{'type': 'text', 'text': MARK}]}], True)
        except SampleError:
            return False
        # A list pasted as it is shows the keys of its parts.
        return shown.count(MARK) == 1 and "'type'" not in shown and '"type"' not in shown

    def _default_template(self) -> str:
        logger.info('The checkpoint has no chat template; using the default format `ROLE: text`.')
        bos = self.tokenizer.bos_token_id
        # Plain text gets a BOS from these tokenizers, but text out of a template does not.
        starts_with_bos = bos is not None and self.tokenizer('x')['input_ids'][:1] == [bos]
        return ('{{ bos_token }}' if starts_with_bos else '') + DEFAULT_TEMPLATE


def _answer(text: str) -> Message:
    return {'role': 'assistant', 'content': [{'type': 'text', 'text': text}]}
