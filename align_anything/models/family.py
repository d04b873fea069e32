"""The rules of a family whose answers are tokens: everything about it that is not its weights, the `Spec` of it.

The base class is the default: it serves any causal or image-text-to-text class of transformers. A family with quirks
overrides class attributes or methods in `models/families/<model_type>.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import CodedMedia, Conversation, Example, MediaKind, Need, Piece
from align_anything.models import structure
from align_anything.models.action_codes import spoken
from align_anything.models.codes import MediaCodes
from align_anything.models.declared_codes import codes_of
from align_anything.models.encoding import (
    RunEncoder,
    behind,
    common_length,
    forget_call_arguments,
    join,
    listed,
    merge_media,
    pad_left,
    truncate,
    whole,
)
from align_anything.models.frames import FURTHER
from align_anything.models.output_heads import OutputHead, output_heads
from align_anything.models.prefill import prefill_of
from align_anything.models.rendering import (
    ChatRenderer,
    Run,
    TrainOn,
    first_differing_turn,
    require_answers,
    require_written,
    shared_turns,
    template_of,
    weight_of,
)
from align_anything.models.spoken_states import stated
from align_anything.models.tower_calls import TowerCalls
from align_anything.models.vocabulary import check_vocabulary


class FamilySpec:
    """Turns conversations into Examples and answers what policies and engines must know of a family.

    Picklable; holds the tokenizer and the processor, never weights.

    Attributes:
        config, model_type, tokenizer, processor: of the checkpoint; `processor` is None for text families.
        max_length: longest sequence that `encode` returns.
        embedding_rows: token ids that the model has an embedding for.
        codes: how media stand in its vocabulary as codes, None for families that only read media.
        continuous: the kinds of media that its processor takes, and a tower makes features of.
        reads: the kinds of media that may stand in a prompt, text aside: `continuous` ones, and those read as codes.
        emits: the kinds of media that the model can learn to write into an answer, text aside: those it has codes for.
        audio_rate: samples per second that audio clips must have, None for families that take none.
        media_token_ids: placeholder ids that stand for media in `input_ids`.
        token_tensor_names: per-token tensors that the model body takes beside `input_ids`.
        stop_token_ids: tokens that end generation: the generation config's, the tokenizer's, the template's.
        pad_token_id: id to fill padding with; it may equal the end-of-sequence id.
        softcap, logit_scale: `logits = softcap * tanh(logit_scale * hidden @ W / softcap)`; None caps nothing.
    """

    unit: ClassVar[str] = 'token'
    meets: ClassVar[Need] = 'probability'
    """What the score of a unit is, which decides what algorithms can train it."""
    bidirectional_media: ClassVar[bool] = False
    """Whether the tokens of one medium see each other in both directions."""
    reads_audio_in_video: ClassVar[bool] = False
    """Whether the audio track of a video goes into the model with it."""
    position_rows: ClassVar[int] = 1
    """Rows of `positions`: 1, or 4 where text positions and three rotary positions differ."""
    further_embedding_rows: ClassVar[int] = 0
    """Rows of the embedding behind the `vocab_size` of the configuration."""
    brings_processor: ClassVar[bool] = False
    """Whether the checkpoints' own code has a processor too; transformers' own families have one."""
    encoder_class: ClassVar[type[RunEncoder]] = RunEncoder
    """What calls the tokenizer and the processor."""
    not_in_vllm: ClassVar[str] = ''  # why vLLM cannot generate with such models
    chat_template: ClassVar[str | None] = None
    """The family's own template, preferred to the checkpoint's."""
    codes: MediaCodes | None = None
    space: ActionSpace | None = None
    """What it acts in, see `action_codes.act_in`; None for models that do not act."""
    component_prefixes: ClassVar[Mapping[str, Sequence[str]] | None] = None
    """Parameter-name prefixes of `vision_tower`, `mm_proj`, `language_model`; None finds them by structure."""

    def __init__(
        self, config: Any, tokenizer: Any, processor: Any = None, *, max_length: int, generation_config: Any = None
    ) -> None:
        """Reads the checkpoint's configuration and tries its template and processor.

        A checkpoint without a chat template gets the default one, and is saved with it.

        Raises:
            ModelError: the chat template or the processor cannot be used, or nothing ends an answer.
        """
        self.model_type: str = config.model_type
        self.config, self.tokenizer, self.processor = config, tokenizer, processor
        self.max_length = max_length
        text_config = config.get_text_config()
        forget_call_arguments(tokenizer)
        self.embedding_rows = check_vocabulary(text_config, tokenizer, self.further_embedding_rows)
        kinds = sorted(self.kinds_read())
        placeholders = {kind: token for kind in kinds if (token := self.placeholder(kind)) is not None}
        if kinds and not placeholders:
            raise ModelError(
                f'{type(processor).__name__} does not say which text stands for a medium, so this family needs a file '
                f'align_anything/models/families/{config.model_type}.py that overrides placeholder().'
            )
        self.continuous: frozenset[MediaKind] = frozenset(placeholders)
        self.codes = self.make_codes()
        self.emits: frozenset[MediaKind] = frozenset() if self.codes is None else frozenset(self.codes.kinds)
        self.reads = self.continuous | (frozenset() if self.codes is None else self.codes.prompts)
        self.audio_rate = self._audio_rate()
        self.media_token_ids = self.placeholder_ids() if self.reads else frozenset()
        self.softcap, self.logit_scale = structure.logit_transform(text_config)
        template = self.chat_template or self._checkpoint_template()
        self.renderer = ChatRenderer(tokenizer, processor, template, placeholders)
        # What was trained with is what gets saved and used for generation.
        (tokenizer if processor is None else processor).chat_template = self.renderer.template
        self.encoder = self.encoder_class(tokenizer, processor, placeholders, self.media_token_ids)
        declared = None if generation_config is None else generation_config.eos_token_id
        declared = [declared] if isinstance(declared, int) else list(declared or [])
        ends = [*declared, tokenizer.eos_token_id, self.renderer.end_of_turn_id, self.renderer.call_end_id]
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys(token for token in ends if token is not None))
        self.pad_token_id: int = self.stop_token_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._dummies = {kind: self._make_dummy(kind) for kind in sorted(self.continuous)}
        probed = {name for piece in self._dummies.values() for name in piece.token_tensors}
        self.token_tensor_names: tuple[str, ...] = tuple(sorted(probed))

    # Encoding

    def encode(self, conversation: Conversation, train_on: TrainOn = 'all_assistant') -> Example:
        """Encodes a conversation whose media are decoded.

        Args:
            conversation: messages with lists of parts; media parts hold the decoded object.
            train_on: `all_assistant` turns, the `last` one, or `all` tokens (the prompt too, media never).

        Returns:
            An Example whose prompt ends where the first trained answer begins and whose one response is the rest. Where
            the template writes an answer otherwise once later turns follow, the response has several sequences, each
            as inference shows it: the prompt is then the history that they share, each beginning with as much of it as
            it has.

        Raises:
            SampleError: the row cannot be rendered or processed, an answer to train holds media of a kind that the
                family does not emit, or nothing to train on fits into `max_length`.
        """
        return self._encode([conversation], train_on, 0)

    def encode_group(
        self,
        conversations: Sequence[Conversation],
        train_on: TrainOn = 'all_assistant',
        start: int | None = None,
        judged: bool = False,
    ) -> Example:
        """Encodes conversations that share their first turns and first differ at an answer, media decoded.

        `start` is the number of the first differing turn, which is found when they differ before it, too; None finds
        it. Answers that are `judged` are read, not learnt: they may be empty, and hold any media the family reads.

        Returns:
            An Example whose prompt is what the conversations share, encoded once, with one response for each of them:
            all that follows, trained in its assistant turns, or in the `last` one only.

        Raises:
            SampleError: the conversations are equal or differ before an answer, or as `encode` does.
        """
        if start is None or shared_turns(conversations) < start:
            start, train_on = first_differing_turn(conversations), 'all_assistant' if start is not None else train_on
        return self._encode(conversations, train_on, start, judged)

    def _encode(
        self, conversations: Sequence[Conversation], train_on: TrainOn, start: int, judged: bool = False
    ) -> Example:
        if judged and any(weight_of(message) not in (0, 1) for turns in conversations for message in turns[start:]):
            raise SampleError('a turn has a weight, but answers that are scored as a whole have none: take it out')
        for conversation in () if judged else conversations:
            require_answers(conversation, train_on, start)
            require_written(conversation, train_on, start, self.emits, f"models of type '{self.model_type}' write")
        marked, coded = self._marked(conversations)
        rendered = [self._with_coded(self.render(conversation, train_on, start), coded) for conversation in marked]
        opening = rendered[0][0][0]
        if any(sequences[0][0] != opening for sequences in rendered):
            raise SampleError(
                'the chat template writes the prompt of these answers differently, or they differ before the last one: '
                'set data_cfgs.train_on: all_assistant'
            )
        if judged:
            # What is read is the conversation as it ends; its earlier answers are history.
            rendered = [sequences[-1:] for sequences in rendered]
        if len(conversations) == 1 and len(rendered[0]) > 1:
            return self._encode_split(rendered[0])
        prompt = self.encode_run(opening, first=True)
        return Example(prompt, [self._response(prompt, opening, sequences) for sequences in rendered])

    def _encode_split(self, sequences: Sequence[Sequence[Run]]) -> Example:
        """The Example of one response of several sequences, which share as much of a prompt as they can."""
        opening = sequences[0][0]
        if len(sequences[-1][0].media) > len(opening.media):
            # Media tensors cannot be cut, so only the first prompt is shared, with its media.
            prompt = self.encode_run(opening, first=True)
            return Example(prompt, [self._response(prompt, opening, sequences)])
        prompts = [self.encode_run(runs[0], first=True) for runs in sequences]
        # Prompts grow with the history: one that no longer fits is left out, as truncation takes it off a sequence.
        fitting = max(1, sum(1 for _ in takewhile(lambda prompt: len(prompt) < self.max_length, prompts)))
        number, sequences, prompts = len(sequences), sequences[:fitting], prompts[:fitting]
        prompt = prompts[-1]
        common = [common_length(other, prompt) for other in prompts]
        if prompt.media and torch.isin(prompt.ids[min(common) :], torch.tensor(sorted(self.media_token_ids))).any():
            return Example(prompts[0], [self._response(prompts[0], opening, sequences)])
        pieces = []
        for runs, own, length in zip(sequences, prompts, common, strict=True):
            rest = behind(own, length)
            if runs is not sequences[-1]:
                # The history counts once where prompts are trained.
                rest.weights = torch.zeros_like(rest.weights)
            response = join([*([rest] if len(rest) else []), *map(self.encode_run, runs[1:])], self.merge_media)
            pieces.append(self._fit(truncate(prompt, length), response))
            pieces[-1].prefix_length = None if length == len(prompt) else length
        return Example(prompt, [whole(pieces, cut=fitting < number)])

    def _response(self, prompt: Piece, opening: Run, sequences: Sequence[Sequence[Run]]) -> Piece:
        """What follows `prompt`, the piece of `opening`, in the sequences of one response."""
        heads, pieces = [], []
        for runs in sequences:
            shares = runs[0].text.startswith(opening.text)
            base = prompt if shares else truncate(prompt, 0)
            rest = runs[0].behind(opening) if shares else runs[0]
            head = [self.encode_run(rest, first=not shares)] if rest.text else []
            response = join([*head, *map(self.encode_run, runs[1:])], self.merge_media)
            if pieces and len(base) + sum(map(len, head)) >= self.max_length:
                # The answer does not fit, as if truncation took it off one long sequence.
                self._require_whole_media(base, response)
                break
            pieces.append(self._fit(base, response))
            pieces[-1].prefix_length = None if shares else 0
            heads.append(sum(map(len, head)))
        for piece, length in zip(pieces[:-1], heads, strict=False):
            # The history counts once where prompts are trained.
            piece.weights = torch.cat([torch.zeros_like(piece.weights[:length]), piece.weights[length:]])
        return whole(pieces, cut=len(pieces) < len(sequences))

    def encode_prompt(self, messages: Conversation) -> Piece:
        """Encodes what generation starts from, with the template's generation prompt. Raises as `encode` does."""
        (marked,), coded = self._marked([messages])
        return self.encode_run(replace(self.render_prompt(marked), coded=coded), first=True)

    def _marked(self, conversations: Sequence[Conversation]) -> tuple[list[Conversation], tuple[CodedMedia, ...]]:
        conversations = list(conversations) if self.space is None else spoken(conversations, self.space)
        return (conversations, ()) if self.codes is None else self.codes.marked(conversations)

    def _with_coded(self, sequences: list[list[Run]], coded: tuple[CodedMedia, ...]) -> list[list[Run]]:
        if not coded:
            return sequences
        # Codes that are sampled at once predict nothing behind them.
        forced = self.codes.begins and (self.codes.restricted or self.codes.parallel is not None)

        def with_coded(run: Run) -> Run:
            # Where a response is a medium and nothing else, its end is no choice either.
            return replace(run, coded=coded, weight=0.0 if forced and run.token is not None else run.weight)

        return [[with_coded(run) for run in runs] for runs in sequences]

    def render(
        self, conversation: Conversation, train_on: TrainOn = 'all_assistant', start: int = 0
    ) -> list[list[Run]]:
        """Returns sequences of runs with their loss weights, before tokenisation; turns before `start` are prompt."""
        return self.renderer.render(stated(conversation, self.space), train_on, start)

    def render_prompt(self, messages: Conversation) -> Run:
        """Returns the one run that generation starts from, before tokenisation."""
        return self.renderer.render_prompt(stated(messages, self.space))

    def encode_run(self, run: Run, first: bool = False) -> Piece:
        """Encodes one run; `first` is what begins a text. Raises SampleError as `encode` does."""
        pieces: list[Piece] = []
        for number, part in enumerate(self.encoder.stretches(run)):
            if type(part) is CodedMedia:
                ids, weights = self.codes.written(part)
                pieces.append(Piece(ids, weights * run.weight, token_tensors=self.codes.beside(part)))
            elif number == 0 or part.text:
                pieces += map(self._checked, self.encoder.pieces(part, first and number == 0))
        return join(pieces, self.merge_media)

    def _checked(self, piece: Piece) -> Piece:
        if self.codes is not None and self.codes.is_no_text(piece.ids).any():
            raise SampleError('the text holds tokens of codes: media are given as media, or with their codes')
        if len(piece) and int(piece.ids.max()) >= self.embedding_rows:
            token = self.tokenizer.convert_ids_to_tokens(int(piece.ids.max()))
            raise SampleError(
                f'the text holds the token {token!r}, for which the model has no embedding: it has '
                f'{self.embedding_rows} rows'
            )
        return piece

    def _fit(self, prompt: Piece, response: Piece) -> Piece:
        limit, total = self.max_length, len(prompt) + len(response)
        if total <= limit:
            return response
        if len(prompt) >= limit:
            media = f' ({listed(prompt.media_counts)} in it)' if prompt.media_counts else ''
            raise SampleError(
                f'the prompt alone has {len(prompt)} tokens{media}, the limit is {limit}: '
                'raise model_cfgs.model_max_length or shorten the row'
            )
        self._require_whole_media(prompt, response)
        kept = truncate(response, limit - len(prompt))
        kept.truncated = True
        if not kept.weights.any():
            raise SampleError(f'truncation to {limit} tokens leaves nothing to train on; the row has {total} tokens')
        return kept

    def _require_whole_media(self, prompt: Piece, response: Piece) -> None:
        """Raises SampleError when truncation would cut a medium."""
        ids = torch.cat([prompt.ids, response.ids])
        placed = torch.isin(ids, torch.tensor(sorted(self.media_token_ids)).long()).nonzero().flatten().tolist()
        last = max([-1, *placed[-1:], *([] if self.codes is None else [self.codes.last_in(ids)])])
        if last >= self.max_length:
            raise SampleError(
                f'media would be cut by truncation: their last token is number {last + 1} of {len(ids)}, '
                f'the limit is {self.max_length}: raise model_cfgs.model_max_length'
            )

    def decode(self, piece: Piece) -> list[dict[str, Any]]:
        """Returns a response as the parts that an assistant message holds: `[{'type': 'text', 'text': …}]`.

        Only the tokens that end it, and padding behind them, are taken off. All others stay in the text, special ones
        too: the policy chose them, so whoever judges or shows the response must see them.
        """
        silent = {*self.stop_token_ids, self.pad_token_id} - (set() if self.codes is None else self.codes.closings)
        ids = piece.ids.tolist()
        while ids and ids[-1] in silent:
            ids.pop()
        parts = [ids] if self.codes is None or not ids else self.codes.parts(ids, piece.token_tensors.get(FURTHER))
        return [
            {'type': part.kind, part.kind: part}
            if type(part) is CodedMedia
            else {'type': 'text', 'text': self.text_of(part)}
            for part in parts
        ]

    def text_of(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids as it was written: tokenizers tidy spaces up if their files say so."""
        as_written = {'clean_up_tokenization_spaces': False, 'spaces_between_special_tokens': False}
        return self.tokenizer.decode(ids, skip_special_tokens=False, **as_written)

    def generation_prefix(self, messages: Conversation) -> str:
        """Returns the text that the template puts between the last message and a response that is generated."""
        return self.renderer.generation_prefix(self._marked([messages])[0][0])

    def prefill(self, messages: Conversation) -> str:
        """Returns the end of that text which belongs to the answer, such as `<think>\n`."""
        return prefill_of(self.renderer, self._marked([messages])[0][0])

    def positions(self, ids: Tensor, media: dict[str, Tensor], token_tensors: dict[str, Tensor]) -> Tensor:
        """Positions of one sequence (a prompt and one response), `(position_rows, length)` int64.

        `media` and `token_tensors` are those of the sequence, merged in order.
        """
        return torch.arange(ids.numel())[None]

    def blank(self, name: str, length: int) -> Tensor:
        """Returns the token tensor of that name of tokens that have none, zeros."""
        return torch.zeros((length, self.codes.further) if name == FURTHER else length, dtype=torch.long)

    def merge_media(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Joins the media tensors of several pieces, in order, into the model body's arguments."""
        return merge_media(parts)

    def dummy(self, kind: MediaKind) -> Piece:
        """Returns the smallest legal medium with its tokens, weight zero, for batches that lack the kind."""
        if kind not in self._dummies:
            raise ModelError(f"models of type '{self.model_type}' take no {kind}")
        return self._dummies[kind]

    def kinds_read(self) -> frozenset[MediaKind]:
        """Returns the kinds of media that the checkpoint has a processor for."""
        return frozenset() if self.processor is None else structure.media_kinds(self.processor)

    def make_codes(self) -> MediaCodes | None:
        """Returns how media stand in the vocabulary as codes, by what the configuration declares; None for nothing.

        Raises ModelError for a declaration that does not fit the tokenizer or the codec.
        """
        return codes_of(self.config, self.tokenizer, self.embedding_rows, self.continuous)

    def heads(self, model: nn.Module) -> list[OutputHead]:
        """Returns the output heads of the plain model; those of ids that are no text behind the one of text."""
        return output_heads(model)

    def _audio_rate(self) -> int | None:
        if 'audio' in self.continuous:
            return structure.audio_rate(self.processor)
        return self.codes.rules['audio'].rate if 'audio' in self.emits else None

    def placeholder_ids(self) -> frozenset[int]:
        """Returns the ids of the tokens at which the model puts media features."""
        return structure.media_token_ids(self.config)

    def placeholder(self, kind: MediaKind) -> str | None:
        """Returns the text that stands for one medium until the processor expands it, None where there is none."""
        return structure.declared_token(self.processor, kind)

    def _make_dummy(self, kind: MediaKind) -> Piece:
        run = Run(self.placeholder(kind) or '', 0.0, ((kind, self.encoder.smallest(kind, self.audio_rate)),))
        try:
            return self.encode_run(run)
        except SampleError as error:
            raise ModelError(
                f'the processor of this {self.model_type} checkpoint cannot encode a plain {kind}: {error}'
            ) from error

    # What policies and engines ask

    def generation_inputs(self, prompts: Sequence[Piece]) -> dict[str, Any]:
        """Returns the arguments of transformers' `generate()` for prompts of `encode_prompt`, padded on the left.

        They suit the plain class of transformers too. Raises SampleError for prompts that differ in `generation_key`,
        or that the class cannot take at all.
        """
        if len({self.generation_key(prompt) for prompt in prompts}) > 1:
            raise SampleError(
                f"generate() of '{self.model_type}' cannot take these prompts in one call: group them by generation_key"
            )
        tensors = {
            name: pad_left([prompt.token_tensors.get(name, self.blank(name, len(prompt))) for prompt in prompts])
            for name in self.token_tensor_names
        }
        return {
            'input_ids': pad_left([prompt.ids for prompt in prompts], self.pad_token_id),
            'attention_mask': pad_left([torch.ones_like(prompt.ids) for prompt in prompts]),
            **tensors,
            **self.merge_media([prompt.media for prompt in prompts if prompt.media]),
        }

    def generation_key(self, prompt: Piece) -> Hashable:
        """Returns what prompts of one call of `generate()` must have in common; most families take any together."""
        return None

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        """Layouts that the model class can compute, the plainest first."""
        return structure.layouts(self.config)

    @cached_property
    def components(self) -> dict[str, list[str]]:
        """Parameter-name prefixes of each component of the model; the longest matching prefix decides."""
        if self.component_prefixes is not None:
            return {component: list(prefixes) for component, prefixes in self.component_prefixes.items()}
        return structure.components(self.config)

    def rollout_name(self, name: str) -> str:
        """Returns what rollout engines call the weight that checkpoints of the family call `name`."""
        return structure.hub_name(name, self._nests_tower)

    @cached_property
    def _nests_tower(self) -> bool:
        return structure.nests_tower(self.config)

    def tower_calls(self, component: str) -> TowerCalls:
        """Returns how calls of the towers in `component` are split into single media, for a cache of their features.

        Raises ModelError where they cannot be split.
        """
        layers = self.config.to_dict().get('vision_feature_layer')
        return TowerCalls(() if layers is None else (layers,) if isinstance(layers, int) else tuple(layers))

    def external_parameters(self, model: nn.Module) -> Sequence[tuple[nn.Module, nn.Parameter]]:
        """Returns each weight that a module reads without calling the module it belongs to, with the reading module.

        ZeRO-3 gathers them for it. By itself it finds out about most of them, but not about one that is only now and
        then already there, as where gradient checkpointing repeats a forward pass.
        """
        return ()

    def component_of(self, name: str) -> str:
        """Returns the component that parameter `name` belongs to."""
        return structure.component_of(self.components, name)

    def _checkpoint_template(self) -> str | None:
        return template_of(self.processor, self.tokenizer)
