"""Conversations to runs of text, with the loss weight of each run set while it is rendered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.logging import get_logger
from align_anything.core.thoughts import closing_of, opened_thought
from align_anything.core.types import ACTION, MEDIA_KINDS, CodedMedia, Conversation, MediaKind, Message
from align_anything.models.chat_form import ELSEWHERE, MARK, ChatForm, message_of, text_of
from align_anything.models.codes import MARK as MEDIUM

TrainOn = Literal['all_assistant', 'last', 'all']

# The generation prompt ends without the space that answers begin with: most vocabularies hold the space and the word in
# one token, which is what the model must learn to write. Answers end with a token in the history too, so that all
# answers of a conversation can be trained in one sequence.
DEFAULT_TEMPLATE = (
    '{% for message in messages %}'
    "{{ message['role'].upper() + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
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
        coded: the media that marks in its text stand for, by the number in the mark; see `models/codes.py`.
    """

    text: str
    weight: float
    media: tuple[tuple[str, Any], ...] = ()
    token: int | None = None
    coded: tuple[CodedMedia, ...] = ()

    def behind(self, opening: Run) -> Run:
        """Returns what follows `opening`, the beginning of this run."""
        return replace(self, text=self.text[len(opening.text) :], media=self.media[len(opening.media) :])


def media_of(messages: Conversation) -> tuple[tuple[str, Any], ...]:
    """Returns the media parts of the messages in order, as `(kind, object)`."""
    return tuple(
        (part['type'], part[part['type']])
        for message in messages
        for part in message['content']
        if part['type'] in MEDIA_KINDS
    )


def without_beginning(messages: Conversation) -> Conversation:
    """Returns the messages without the beginning of an answer that generation goes on from, a turn marked `prefix`."""
    return messages[:-1] if messages and messages[-1].get('prefix') else messages


def weight_of(message: Message) -> float:
    """Returns what the loss weights of a turn's tokens are multiplied by."""
    return message.get('weight', 1.0)


def trained_turns(conversation: Conversation, train_on: TrainOn, start: int = 0) -> list[int]:
    """Returns the numbers of the assistant turns to train on, from turn number `start` on; none of weight 0."""
    turns = [number for number in range(start, len(conversation)) if conversation[number]['role'] == 'assistant']
    turns = turns[-1:] if train_on == 'last' else turns
    return [turn for turn in turns if weight_of(conversation[turn])]


def require_answers(conversation: Conversation, train_on: TrainOn, start: int) -> None:
    """Raises SampleError when one of the answers to train on, from turn number `start` on, says nothing."""
    for turn in trained_turns(conversation, train_on, start):
        message = conversation[turn]
        says = message.get('tool_calls') or message.get('reasoning_content')
        if not says and all(part['type'] == 'text' and not part['text'].strip() for part in message['content']):
            raise SampleError('the answer is empty')


def require_written(
    conversation: Conversation, train_on: TrainOn, start: int, emitted: Set[MediaKind], writer: str
) -> None:
    """Raises SampleError when one of the answers to train on holds media of a kind that is not among the `emitted`.

    Their tokens would weigh nothing, and the model would learn to open and close media with nothing in them. `writer`
    says who does not write them, as in `models of type 'llava' write`.
    """
    for turn in trained_turns(conversation, train_on, start):
        kinds = {part['type'] for part in conversation[turn]['content']} & {*MEDIA_KINDS, ACTION} - emitted
        if kinds:
            raise SampleError(
                f'turn {turn} is an answer to train and holds {" and ".join(sorted(kinds))} media, but {writer} no '
                f'{" and no ".join(sorted(kinds))}: put the media into a user turn, set data_cfgs.train_on: last if a '
                'later answer is what you train, or choose a model family and a pair that write them'
            )


def shared_turns(conversations: Sequence[Conversation]) -> int:
    """Returns how many turns conversations begin with alike. Media are the same when they are the same object."""
    first, others = conversations[0], conversations[1:]
    return next(
        (
            turn
            for turn, message in enumerate(first)
            if any(turn == len(other) or not _same(message, other[turn]) for other in others)
        ),
        len(first),
    )


def first_differing_turn(conversations: Sequence[Conversation]) -> int:
    """Returns the number of the first turn in which conversations differ, an answer in each of them.

    Raises SampleError when the conversations are equal, when one ends where others go on, or when they first differ at
    a turn that is no answer.
    """
    at = shared_turns(conversations)
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
    if {**one, 'content': None} != {**other, 'content': None} or len(one['content']) != len(other['content']):
        return False
    return all(
        mine['type'] == theirs['type']
        and (mine['text'] == theirs['text'] if mine['type'] == 'text' else mine[mine['type']] is theirs[theirs['type']])
        for mine, theirs in zip(one['content'], other['content'], strict=True)
    )


def template_of(processor: Any, tokenizer: Any) -> str | None:
    """Returns the chat template of a checkpoint, that of its processor first; None where it has none."""
    for source in (processor, tokenizer):
        template = None if source is None else source.chat_template
        if isinstance(template, dict):
            template = template.get('default', next(iter(template.values()), None))
        if template is not None:
            return template
    return None


def _compact(text: str) -> str:
    return ''.join(text.split())


class ChatRenderer:
    """A chat template and what is known of it: its generation prompt, its end of a turn, how it writes the history.

    Picklable. `template` is the Jinja text in force; `form` what it takes; `end_of_turn_id` the token that closes an
    assistant turn, `call_end_id` the one that closes a tool call; `splits` whether the answers of a conversation need
    sequences of their own, because the template writes an answer otherwise once later turns follow.
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
        if template is None:
            logger.info('The checkpoint has no chat template; using the default format `ROLE: text`.')
            template = default_template(tokenizer)
        self.template = template
        # Text templates mostly paste `content` as it is; templates of multimodal models walk through its parts.
        source, lists_first = (tokenizer, False) if processor is None else (processor, True)
        self.form = ChatForm(source, template, placeholders, lists_first)
        self.generation_prompt = ''
        prompt = [message_of('user', 'x')]
        try:
            plain, head, full = self.text(prompt), self.text(prompt, True), self.text([*prompt, _answer(MARK)])
        except SampleError as error:
            raise ModelError(f'{error}. Give another template with model_cfgs.chat_template.') from error
        if MARK.lower() not in full.lower():
            raise ModelError(
                'The chat template shows no text of the assistant, so there would be nothing to train on. '
                'Give another one with model_cfgs.chat_template (a path or the Jinja text).'
            )
        if not head.startswith(plain):
            # Phi-3's writes an EOS after the last turn where no answer is to be generated.
            plain = plain.removesuffix(tokenizer.eos_token or '')
        self.generation_prompt = head[len(plain) :] if head.startswith(plain) else ''
        self._tail = full.rpartition(MARK)[2]
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        specials |= {tokenizer.eos_token} - {None}
        special = '|'.join(map(re.escape, sorted(specials, key=len, reverse=True))) or r'(?!)'
        self._special, self._special_end = re.compile(special), re.compile(rf'({special})(\s*)\Z')
        end = self._special.search(self._tail)
        self.end_of_turn_id: int | None = (
            tokenizer.convert_tokens_to_ids(end.group()) if end else tokenizer.eos_token_id
        )
        if self.end_of_turn_id is None:
            raise ModelError(
                'Neither the chat template nor the tokenizer has a token that ends an answer, so the model could never '
                'learn to stop. Give model_cfgs.chat_template, or set eos_token in tokenizer_config.json.'
            )
        self.call_end_id = self._find_call_end()
        self.splits = self._find_splits()
        if self.splits:
            logger.info(
                'In conversations of several answers: the chat template writes an answer otherwise once later turns '
                'follow (without its thoughts, say, or what ends it), so each is trained in a sequence of its own, as '
                'inference shows it, and what the sequences share is computed once in the layout shared_prefix.'
            )

    def begins_with_special(self, text: str) -> bool:
        """Whether a special token stands at the beginning of a text, blanks aside."""
        return self._special.match(text.lstrip()) is not None

    def text(self, messages: Conversation, add_generation_prompt: bool = False) -> str:
        """Renders messages whose content is a list of parts. Raises SampleError when the template refuses them."""
        text, opening = self.form.text(messages, add_generation_prompt), self.generation_prompt
        # A medium that an answer begins with follows what generation starts from: the blank there belongs to words.
        return re.sub(rf'(?<={re.escape(opening)})\s+(?={MEDIUM.pattern})', '', text) if opening else text

    def render_prompt(self, messages: Conversation) -> Run:
        """Returns the one run that generation starts from; with the beginning of the answer, if `messages` end so."""
        return Run(self._prompt(messages), 0.0, media_of(messages))

    def _prompt(self, messages: Conversation) -> str:
        before = without_beginning(messages)
        prompt = self.text(before, add_generation_prompt=True)
        if before is messages:
            return prompt
        content, full, opened = text_of(messages[-1]), self.text(messages), opened_thought(prompt).strip()
        if opened and content.lstrip().startswith(opened):  # by the template and by the row, where once is right
            content = content.lstrip().removeprefix(opened)
            content = content.lstrip('\n') if prompt.endswith('\n') else content
        # As answers are rendered to be trained, unless a template takes it for a whole one, without a thought for one.
        answer = self._split(messages, full[len(prompt) :])[0] if full.startswith(prompt) else content
        return prompt + (answer if _compact(answer) == _compact(content) else content)

    def generation_prefix(self, messages: Conversation) -> str:
        """Returns what the template writes behind the last message for an answer to begin with."""
        plain, prompt = self.text(without_beginning(messages)), self._prompt(messages)
        return prompt[len(plain) :] if prompt.startswith(plain) else ''

    def render(
        self, conversation: Conversation, train_on: TrainOn = 'all_assistant', start: int = 0
    ) -> list[list[Run]]:
        """Returns sequences of runs, each up to the end of an answer; the first run of a sequence is its prompt.

        There is one sequence as long as the template writes earlier answers as they were generated. An answer that it
        writes otherwise once later turns follow (without its thought, with no token that ends it) ends its sequence,
        and the next one begins with the history as the template writes it for generation. Turns before number `start`
        are part of the prompt, and so are answers of weight 0; other weights multiply the loss weights of their turn.

        Raises SampleError when there is no assistant turn to train, or when the template refuses the conversation or
        changes an answer.
        """
        conversation = [*map(_with_text, conversation)]
        turns = trained_turns(conversation, train_on, start)
        if not turns:
            raise SampleError('no assistant turn to train has a weight above 0, so there is nothing to train on')
        if train_on == 'all':
            turns = self._all_turns(conversation, start)
        prompt_weight = 1.0 if train_on == 'all' else 0.0
        sequences: list[list[Run]] = []
        done, begin = None, 0
        for turn in turns:
            prompt = self.render_prompt(conversation[:turn]) if turn else self._opening(conversation[:1])
            answer, end, rest = self._answer(conversation[: turn + 1], prompt.text)
            if done is not None and prompt.text.startswith(done):
                between = Run(prompt.text[len(done) :], prompt_weight, media_of(conversation[begin:turn]))
                sequences[-1].append(between)
            else:
                sequences.append([Run(prompt.text, prompt_weight, prompt.media)])
            weight = weight_of(conversation[turn])
            sequences[-1].append(Run(answer, weight, media_of(conversation[turn : turn + 1])))
            token = self.tokenizer.convert_tokens_to_ids(end) if end else self.end_of_turn_id
            sequences[-1].append(Run('', weight, token=token))
            # Without an end of its own, the answer would go on with an inserted one that no history has.
            done, begin = prompt.text + answer + end if end else None, turn + 1
        if prompt_weight and rest:
            sequences[-1].append(Run(rest, prompt_weight))
        return sequences

    def _opening(self, first: Conversation) -> Run:
        """The bare generation prompt, with what the template writes before the first turn, here of the assistant."""
        full = self.text([{**first[0], **_answer(MARK)}])
        stem = self.generation_prompt
        if stem not in full:
            stem = stem.removesuffix(opened_thought(stem))
        if MARK not in full or stem not in full:
            raise SampleError('the chat template writes no generation prompt before an assistant turn that comes first')
        if stem:
            return Run(full[: full.index(stem)] + self.generation_prompt, 0.0)
        before = full.partition(MARK)[0]
        tokens = list(self._special.finditer(before))
        return Run((before[: tokens[-1].end()] if tokens else '') + self.generation_prompt, 0.0)

    def _answer(self, messages: Conversation, prompt: str) -> tuple[str, str, str]:
        """Splits the last of the messages, an answer, into the text to learn, the end-of-turn token, what is left.

        The text begins where the generation prompt `prompt` ends, also behind a thought that it opens.
        """
        message, full = messages[-1], self.text(messages)
        thought, spoken = _thought_of(message)
        opened = opened_thought(prompt)
        before = prompt.removesuffix(opened)
        if not full.startswith(before):
            # Of the calls that led to an answer, some templates drop the thoughts once it is given (gpt-oss).
            messages = [*map(_without_thought, messages[:-1]), message]
            full, prompt = self.text(messages), self._prompt(messages[:-1])
            before = prompt.removesuffix(opened)
        if full.startswith(prompt):
            segment = full[len(prompt) :]
            if thought and _compact(thought) not in _compact(segment):
                if not self.form.knows_thoughts:
                    raise SampleError(
                        f'the answer has a thought, but the chat template does not write any. {ELSEWHERE} Or put it '
                        "into the answer's content."
                    )
                segment = f'<think>\n{thought}\n</think>\n\n' + segment.lstrip()
        elif opened and full.startswith(before):
            # The template takes the thought off finished answers, the last one too.
            segment, close = full[len(before) :].lstrip(), closing_of(opened)
            inline = bool(thought) and not message.get('reasoning_content') and close in segment
            if inline or segment.startswith(opened.strip()):
                segment = segment.partition(close)[2].lstrip()
            lead = '' if prompt.endswith('\n') else '\n'
            segment = lead + (f'{thought}\n' if thought else '\n') + f'{close}\n\n' + segment
        else:
            raise SampleError(
                f'the chat template opens an answer with {self.generation_prompt!r} for generation but writes '
                'finished answers differently, so they cannot be trained as they are generated. '
                'Give a template with model_cfgs.chat_template.'
            )
        answer, end, rest = self._split(messages, segment)
        shown = _compact(self.generation_prompt + answer)
        for call in self._unwritten_calls(messages, full, answer):
            raise SampleError(f'the chat template does not write the call of {call["function"]["name"]!r}. {ELSEWHERE}')
        if _compact(spoken) not in shown or _compact(thought) not in shown:
            raise SampleError(
                f'the chat template changes the answer: {text_of(message)[:60]!r} became {answer[:60]!r}. '
                'Give a template with model_cfgs.chat_template.'
            )
        return answer, end, rest

    def _unwritten_calls(self, messages: Conversation, full: str, answer: str) -> list[dict[str, Any]]:
        """The calls of the last of the messages that are missing in their rendered form; some write the first only."""
        calls = messages[-1].get('tool_calls') or []
        if len(calls) < 2:
            return [call for call in calls if call['function']['name'] not in answer]
        others = [[other for other in calls if other is not call] for call in calls]
        return [
            call
            for call, rest in zip(calls, others, strict=True)
            if self.text([*messages[:-1], {**messages[-1], 'tool_calls': rest}]) == full
        ]

    def _all_turns(self, conversation: Conversation, start: int) -> list[int]:
        """The assistant turns, where everything between them is trained too: those of weight 0 are runs of their own.

        Raises SampleError for a weight of another turn, whose text is not told from its neighbours'.
        """
        weighed = [turn for turn, message in enumerate(conversation) if weight_of(message) != 1]
        others = [turn for turn in weighed if conversation[turn]['role'] != 'assistant']
        if others:
            raise SampleError(
                f'turn {others[0]} ({conversation[others[0]]["role"]}) has a weight of its own, but under '
                'data_cfgs.train_on: all only answers may: take it out, or set train_on: all_assistant'
            )
        return [turn for turn in range(start, len(conversation)) if conversation[turn]['role'] == 'assistant']

    def _split(self, messages: Conversation, segment: str) -> tuple[str, str, str]:
        """Splits a rendered answer into the text to learn, the text of the end-of-turn token, and what is left."""
        if messages[-1].get('tool_calls'):
            # What ends a call need not end a text.
            found = self._special_end.search(segment)
            return (segment[: found.start()], found[1], found[2]) if found else (segment.rstrip(), '', '')
        tail = self._tail
        if not segment.endswith(tail):
            # A tail can depend on the turn's position in the conversation; ask for this very one.
            tail = self.text([*messages[:-1], {**messages[-1], **_answer(MARK)}]).rpartition(MARK)[2]
        if not segment.endswith(tail):
            raise SampleError(f'the chat template ends this answer in an unknown way: {segment[-40:]!r}')
        answer = segment[: len(segment) - len(tail)]
        end = self._special.search(tail)
        if end is None:
            return answer, '', tail
        return answer + tail[: end.start()], end.group(), tail[end.end() :]

    def _find_call_end(self) -> int | None:
        call = {'id': 'c1', 'type': 'function', 'function': {'name': 'x', 'arguments': {}}}
        if not self.form.writes_calls:
            return None
        try:
            found = self._special_end.search(self.text([message_of('user', 'x'), _answer('', tool_calls=[call])]))
        except SampleError:  # some want a tool to be described
            return None
        return self.tokenizer.convert_tokens_to_ids(found[1]) if found else None

    def _find_splits(self) -> bool:
        turns = [message_of('user', 'x'), _answer(MARK), message_of('user', 'x'), _answer(MARK)]
        thinking = [{**turn, 'reasoning_content': MARK} if turn['role'] == 'assistant' else turn for turn in turns]
        try:
            return any(len(self.render(probe)) > 1 for probe in [turns, *([thinking] * self.form.knows_thoughts)])
        except SampleError:  # such rows are left out, each with its reason
            return False


def default_template(tokenizer: Any) -> str:
    """Returns the template of checkpoints without one: `ROLE: text`."""
    bos = tokenizer.bos_token_id
    # Plain text gets a BOS from these tokenizers, but text out of a template does not.
    starts_with_bos = bos is not None and tokenizer('x')['input_ids'][:1] == [bos]
    return ('{{ bos_token }}' if starts_with_bos else '') + DEFAULT_TEMPLATE


def _answer(text: str, **more: Any) -> Message:
    return message_of('assistant', text, **more)


def _with_text(message: Message) -> Message:
    """An answer of media alone, with an empty text: some templates end texts, and write nothing behind media."""
    kinds = {part['type'] for part in message['content']}
    if message['role'] != 'assistant' or not kinds or 'text' in kinds:
        return message
    return {**message, 'content': [*message['content'], {'type': 'text', 'text': ''}]}


def _without_thought(message: Message) -> Message:
    """A turn without its thought, and a call also without the text beside it, which may be written as one."""
    kept = {key: value for key, value in message.items() if key != 'reasoning_content'}
    if message.get('tool_calls'):
        kept['content'] = [part for part in message['content'] if part['type'] != 'text']
    return kept


def _thought_of(message: Message) -> tuple[str, str]:
    """The thought of an answer and what it says besides; the thought may stand in its text."""
    content = text_of(message)
    before, close, after = content.partition('</think>')
    if close and not message.get('reasoning_content'):
        return before.strip().removeprefix('<think>').strip(), after.strip()
    return (message.get('reasoning_content') or '').strip(), content
