"""CSM: speech, a frame of codes at a time. The first code of a frame is a token, a depth decoder adds the others.

The ids are those of text, and behind them, from `text_vocab_size` on, the codes of the first book. What ends a sound is
a frame of zeros, for which the token `<|audio_eos|>` stands, as in the processor of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CsmForConditionalGeneration, DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from align_anything.core.errors import SampleError
from align_anything.core.types import CodedMedia, Conversation, Example, MediaKind, Message, Piece
from align_anything.models.body import BodyWithin
from align_anything.models.codes import MARK, KindOfCodes, MediaCodes
from align_anything.models.family import FamilySpec
from align_anything.models.frames import FURTHER, FramesWritten, WritesFrames
from align_anything.models.omni import put
from align_anything.models.output_heads import OutputHead
from align_anything.models.own_codec import own_codec
from align_anything.models.rendering import Run, TrainOn

SILENT = -1e4
"""The logit of text, which the model does not write."""
SPEAKER = '0'
"""Who speaks where a turn does not say so by its `name`."""
TEMPLATE = (
    f"{{% for message in messages %}}{{% set speaker = message['name'] or '{SPEAKER}' %}}"
    "{% if not speaker.isdigit() %}{{ raise_exception('the name of who speaks is a number') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[' + speaker + ']' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '<|audio_eos|>' }}"
    "{% else %}{{ raise_exception('speech has no turn of this role') }}{% endif %}{% endfor %}"
)
"""What published templates write, in the roles of a chat: in theirs one turn holds a text and the sound of it."""
ROLES_ARE_SPEAKERS = "message['role'].isdigit()"
"""What tells a published template, whose roles are numbers of speakers."""
OF_FILES = ('transformers_version', '_from_model_config')
ENDED = re.compile(rf'({MARK.pattern})<\|audio_eos\|>')
"""A sound in a rendered text, and what ends its turn."""
_expanded = CsmForConditionalGeneration.get_expanded_tied_weights_keys


def _tied(model: CsmForConditionalGeneration, all_submodels: bool = False) -> dict[str, str]:
    """transformers' own ties, and that of the embeddings, which it drops because no head is tied to them.

    Checkpoints hold one of the two; the other one would begin at random (transformers pull request 48999).
    """
    own = _expanded(model, all_submodels)
    return {**own, **model._tied_weights_keys} if model.config.tie_codebooks_embeddings else own


CsmForConditionalGeneration.get_expanded_tied_weights_keys = _tied


class AccustomedCsmModel(BodyWithin, WritesFrames, CsmForConditionalGeneration):
    """CSM over one vocabulary; see the module."""

    stored_tied = ('backbone_model.embed_tokens.embed_audio_tokens.weight',)

    # transformers' own loop samples whole frames, tells no scores and knows no grammar.
    generate = GenerationMixin.generate
    _sample = GenerationMixin._sample
    _prepare_generation_config = GenerationMixin._prepare_generation_config
    _get_stopping_criteria = GenerationMixin._get_stopping_criteria
    prepare_inputs_for_generation = GenerationMixin.prepare_inputs_for_generation

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embedding of text."""
        return self.embed_text_tokens

    def embedded(self, ids: Tensor, further: Tensor | None) -> Tensor:
        """Returns the embeddings of ids of text and codes, `(rows, length, size)`.

        A frame is the sum of its codes; `further` are those behind the first one, `(rows, length, books - 1)`.
        """
        first = self.config.text_vocab_size
        end = ids == self.config.audio_eos_token_id
        frames = (ids >= first) | end
        words = self.embed_text_tokens(ids.masked_fill(frames, 0))
        if further is None:
            further = ids.new_zeros(*ids.shape, self.config.num_codebooks - 1)
        beginning = (ids - first).masked_fill(end, self.config.codebook_eos_token_id)
        codes = torch.cat([beginning[..., None], further], dim=-1)[frames]
        return put(words, frames, self.backbone_model.embed_tokens(codes[None])[0])

    def body(
        self,
        input_ids: Tensor | None = None,
        further_codes: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **inputs: Any,
    ) -> BaseModelOutputWithPast:
        """Returns what the backbone makes of ids and the further codes beside them."""
        if inputs_embeds is None:
            inputs_embeds = self.embedded(input_ids, further_codes)
        return self.backbone_model(inputs_embeds=inputs_embeds, **inputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        further_codes: Tensor | None = None,
        frames: FramesWritten | None = None,
        **inputs: Any,
    ) -> CausalLMOutputWithPast:
        """Returns the logits of all ids, `(rows, length, vocabulary)`: of those that can begin a frame, and no text.

        What writes `frames` finds there the states, and leaves the further codes of the last frame.
        """
        if frames is not None and frames.further:
            further_codes = frames.further[-1][:, None]
        outputs = self.body(
            input_ids=input_ids,
            further_codes=further_codes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **inputs,
        )
        kept = slice(-logits_to_keep, None) if type(logits_to_keep) is int else logits_to_keep
        hidden = outputs.last_hidden_state[:, kept]
        if frames is not None:
            frames.states = hidden[:, -1]
        codes = self.lm_head(hidden)
        words = codes.new_full((*codes.shape[:-1], self.config.text_vocab_size), SILENT)
        # The end shares the row of the code that its frame begins with.
        words[..., self.config.audio_eos_token_id] = codes[..., self.config.codebook_eos_token_id]
        logits = torch.cat([words, codes], dim=-1)
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)

    def further_logprobs(self, states: Tensor, codes: Tensor) -> Tensor:
        """As `WritesFrames`."""
        behind = self._embedded_behind(codes[:, :-1])
        # Not by ids: the decoder would then write the states over its embeddings, which ZeRO-3 forbids.
        inputs = torch.cat([states[:, None], behind], dim=1)
        # Without a mask and a cache, the decoder would look for packed sequences in positions that it has of one row.
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        logits = self.depth_decoder(inputs_embeds=inputs, attention_mask=mask, use_cache=False).logits
        wide = torch.promote_types(logits.dtype, torch.float32)
        logprobs = torch.log_softmax(logits.to(wide), dim=-1)
        return logprobs.gather(-1, codes[:, 1:, None]).squeeze(-1).sum(-1)

    def further_codes(self, states: Tensor, first: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """As `WritesFrames`."""
        cache = DynamicCache(config=self.depth_decoder.config)
        inputs = torch.cat([states[:, None], self._embedded_behind(first[:, None])], dim=1)
        found: list[Tensor] = []
        for _ in range(1, self.config.num_codebooks):
            outputs = self.depth_decoder(inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            found.append(choose(outputs.logits[:, -1]))
            inputs = self._embedded_behind(found[-1][:, None], len(found))
        return torch.stack(found, dim=1)

    def _embedded_behind(self, codes: Tensor, book: int = 0) -> Tensor:
        """What the depth decoder reads of the codes `(frames, books)` of books from number `book` on."""
        books = torch.arange(book, book + codes.shape[1], device=codes.device)
        return self.depth_decoder.model.embed_tokens(codes + books * self.config.depth_decoder_config.vocab_size)

    def generation_settings(self) -> dict[str, Any]:
        """As `WritesFrames`: those of the depth decoder, which transformers takes out of the file when it loads."""
        own = self.depth_decoder.generation_config.to_diff_dict()
        return {f'depth_decoder_{name}': value for name, value in own.items() if name not in OF_FILES}


class CsmSpec(FamilySpec):
    """Text is read, sounds are written: each answer is one sound."""

    brings_processor = True

    @property
    def further_embedding_rows(self) -> int:
        """Text has an embedding of its own; `vocab_size` is that of codes."""
        return self.config.text_vocab_size - self.config.vocab_size

    def __init__(self, config: Any, tokenizer: Any, processor: Any = None, **options: Any) -> None:
        """As `FamilySpec`. The template of a checkpoint is saved as it came, for the processor of transformers."""
        own = processor.chat_template
        super().__init__(config, tokenizer, processor, **options)
        self.token_tensor_names = (FURTHER,)
        if own is not None and ROLES_ARE_SPEAKERS in own:
            processor.chat_template = own

    def kinds_read(self) -> frozenset[MediaKind]:
        """Returns the kinds that the model reads otherwise than as codes: none."""
        return frozenset()

    def make_codes(self) -> MediaCodes:
        """Returns the codes of sounds, which end where the model ends them. Raises ModelError as `own_codec`."""
        rules, config = own_codec(self.config), self.config
        codes = KindOfCodes(
            'audio',
            rules.books[:1],
            (config.text_vocab_size,),
            closing=(config.audio_eos_token_id,),
            further=rules.books[1:],
            end_code=config.codebook_eos_token_id,
            unused=config.vocab_size - rules.books[0],
        )
        return MediaCodes({'audio': codes}, {'audio': rules}, separate=True, wordless=True)

    def heads(self, model: nn.Module) -> list[OutputHead]:
        """Returns the head of the first codes; there is none of text."""
        first = self.config.text_vocab_size
        return [OutputHead((first, first + self.config.vocab_size), model.lm_head)]

    def generation_inputs(self, prompts: Sequence[Piece]) -> dict[str, Any]:
        """As `FamilySpec`; the plain class of transformers takes no codes, and gets none where no prompt has any."""
        inputs = super().generation_inputs(prompts)
        if not any(FURTHER in prompt.token_tensors for prompt in prompts):
            del inputs[FURTHER]
        return inputs

    def _encode(
        self, conversations: Sequence[Conversation], train_on: TrainOn, start: int, judged: bool = False
    ) -> Example:
        if train_on == 'all':
            raise SampleError('this model writes no text, so data_cfgs.train_on cannot be `all`')
        return super()._encode(conversations, train_on, start, judged)

    def _marked(self, conversations: Sequence[Conversation]) -> tuple[list[Conversation], tuple[CodedMedia, ...]]:
        for conversation in conversations:
            for turn, message in enumerate(conversation):
                _require_one_sound(turn, message)
        return super()._marked(conversations)

    def encode_run(self, run: Run, first: bool = False) -> Piece:
        # The codes of a sound come with its end.
        return super().encode_run(replace(run, text=ENDED.sub(r'\1', run.text)), first)

    def _checked(self, piece: Piece) -> Piece:
        if torch.isin(piece.ids, torch.tensor([self.config.audio_token_id, self.config.audio_eos_token_id])).any():
            raise SampleError('the text holds tokens that stand for sounds: sounds are given as media, or with codes')
        return super()._checked(piece)

    def _with_coded(self, sequences: list[list[Run]], coded: tuple[CodedMedia, ...]) -> list[list[Run]]:
        # What ends a turn ends its sound, and stands there already.
        kept = [[run for run in runs if run.token is None] for runs in sequences]
        return [[replace(run, coded=coded) for run in runs] for runs in kept]

    def _checkpoint_template(self) -> str | None:
        found = super()._checkpoint_template()
        return TEMPLATE if found is None or ROLES_ARE_SPEAKERS in found else found


def _require_one_sound(turn: int, message: Message) -> None:
    """Raises SampleError for an answer that is anything but one sound."""
    said = [part for part in message['content'] if part['type'] != 'text' or part['text'].strip()]
    if message['role'] == 'assistant' and [part['type'] for part in said] != ['audio']:
        kinds = ' and '.join(part['type'] for part in said) or 'nothing'
        raise SampleError(f'turn {turn} is an answer of {kinds}, but this model writes one sound and no text')


MODEL, SPEC = AccustomedCsmModel, CsmSpec
READS, WRITES, WRITES_TEXT = (), ('audio',), False
