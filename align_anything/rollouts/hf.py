"""Rollouts by transformers' own `generate()` with the model in training: no second copy, and no speed record."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, StoppingCriteria

from align_anything.core.types import Example, Piece, Response, map_tensors
from align_anything.models.adapter import bare_model
from align_anything.models.codes import TEXT, MediaCodes
from align_anything.models.encoding import pad_positions
from align_anything.models.family import FamilySpec
from align_anything.models.frames import FURTHER, FramesWritten, WritesFrames
from align_anything.policies.guidance import guided
from align_anything.policies.token.hidden import cast_floats
from align_anything.rollouts.at_once import AtOnce
from align_anything.rollouts.base import Sampling, Tell, evaluated, never_sampled, restriction_of, sampled, text_between
from align_anything.rollouts.grammar import State
from align_anything.rollouts.growing_cache import make_room
from align_anything.rollouts.restricted import (
    NOTHING,
    Draw,
    Restricted,
    Restriction,
    RowDraws,
    SetSampling,
    left_of,
    sample,
    sampled_of,
    seed_of,
)
from align_anything.rollouts.streaming import Streams, Wanted


class HFRollouts:
    """Generates with `model`, whose weights are always the present ones.

    Args:
        model: the transformers model, adapters in place.
        spec: its family.
        dtype: what floating point media are cast to.
        batch_size: responses that are generated at once.
        gathered: gathers all weights of a partitioned model on each rank as long as its context lasts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: FamilySpec,
        *,
        dtype: torch.dtype,
        batch_size: int,
        gathered: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model, self.spec, self.dtype, self.batch_size, self.gathered = model, spec, dtype, batch_size, gathered
        self.version = 0

    def sync(self, version: int) -> None:
        """Remembers the number of updates; the weights are those of the policy."""
        self.version = version

    def sleep(self) -> None:
        """Has no memory of its own to give back."""

    def generate(
        self, examples: Sequence[Example], sampling: Sampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """Returns `sampling.responses` responses to the prompt of each Example; `tell` is told as they grow."""
        wanted = [(number, which) for number in range(len(examples)) for which in range(sampling.responses)]
        found: list[list[Response]] = [[] for _ in examples]
        devices = [self.model.device] if self.model.device.type == 'cuda' else []
        random_state = torch.random.fork_rng(devices=devices)
        with evaluated(self.model), torch.no_grad(), self.gathered(), random_state, without_own_settings(self.model):
            torch.manual_seed(sampling.seed)
            for call in self._calls([example.prompt for example in examples], wanted):
                responses = self._generate(examples, call, sampling, tell)
                for (number, _), response in zip(call, responses, strict=True):
                    found[number].append(response)
        return found

    def _calls(self, prompts: Sequence[Piece], wanted: Sequence[Wanted]) -> list[list[Wanted]]:
        """Splits what is wanted into calls, each of prompts that the class takes together, of like length."""
        together: dict[Hashable, list[Wanted]] = {}
        for one in wanted:
            together.setdefault(self.spec.generation_key(prompts[one[0]]), []).append(one)
        calls = []
        for own in together.values():
            ordered = sorted(own, key=lambda one: len(prompts[one[0]]))
            calls += [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]
        return calls

    def _inputs(self, prompts: Sequence[Piece]) -> dict[str, Any]:
        inputs = cast_floats(self.spec.generation_inputs(prompts), self.dtype)
        return map_tensors(inputs, lambda tensor: tensor.to(self.model.device))

    def _prefilled(self, examples: Sequence[Example], numbers: Sequence[int], room: int) -> dict[str, Any]:
        """The arguments of `generate()` for prompts by number, those of several responses computed once.

        All but the last token of a prompt, media among them, go through the model once, and what is kept of them is
        repeated, with `room` for so many new tokens.
        """
        distinct = list(dict.fromkeys(numbers))
        prompts = [examples[number].prompt for number in distinct]
        placeholders = {*never_sampled(self.spec)}
        if (
            len(distinct) == len(numbers)
            or 'shared_prefix' not in self.spec.layouts
            or any(len(prompt) < 2 or int(prompt.ids[-1]) in placeholders for prompt in prompts)
        ):
            return self._inputs([examples[number].prompt for number in numbers])
        inputs = self._inputs(prompts)
        settings = GenerationConfig(
            max_new_tokens=1, pad_token_id=self.spec.pad_token_id, return_dict_in_generate=True, **GREEDY
        )
        # Families of which some positions are no whole numbers give them themselves.
        own = [self.spec.positions(prompt.ids, prompt.media, prompt.token_tensors) for prompt in prompts]
        inputs.setdefault('position_ids', pad_positions(own).to(self.model.device))
        tokens = inputs.keys() & {'input_ids', 'attention_mask', *self.spec.token_tensor_names}
        beginning = {name: value[:, :-1] if name in tokens else value for name, value in inputs.items()}
        beginning['position_ids'] = inputs['position_ids'][..., :-1]
        cache = type(self.model).generate(self.model, **beginning, generation_config=settings).past_key_values
        rows = torch.tensor([distinct.index(number) for number in numbers], device=self.model.device)
        cache.batch_select_indices(rows)
        make_room(cache, room)
        repeated = {name: inputs[name][rows] for name in tokens}
        return {**repeated, 'position_ids': inputs['position_ids'][..., rows, :], 'past_key_values': cache}

    def _generate(
        self, all_examples: Sequence[Example], call: Sequence[Wanted], sampling: Sampling, tell: Tell | None
    ) -> list[Response]:
        guides = sampling.guidance != 1
        examples = [all_examples[number] for number, _ in call]
        draw = sampled_of
        if sampling.seeds is not None:
            draw = RowDraws([seed_of(sampling.seeds[number], which) for number, which in call])
        if self.spec.codes is not None and self.spec.codes.parallel is not None:
            found = AtOnce(self.model, self.spec, self.dtype)(examples, sampling, draw, self.version)
            if tell is not None:
                Streams(self.spec, sampling, call, tell).finish(found)
            return found
        prompts = [example.prompt for example in examples]
        if guides:
            prompts += [example.unconditional for example in examples]
        if guides:
            inputs = self._inputs(prompts)
        else:
            inputs = self._prefilled(all_examples, [number for number, _ in call], sampling.max_new_tokens)
        start = inputs['input_ids'].shape[1]
        stops = _StopStrings(self.spec, sampling.stop, start)
        restriction, more = restriction_of(self.spec, sampling), {}
        if restriction is None:
            own = SetSampling(sampling.temperature, sampling.top_k, sampling.top_p)
            recorder = _Recorder(own, never_sampled(self.spec), draw)
        else:
            # Temperature, top-p and top-k are those of each set.
            if self.spec.codes.further:
                more['frames'] = FramesWritten()
                recorder = _FrameRecorder(
                    restriction, stops.lengths, draw, self.spec.codes, bare_model(self.model), more['frames']
                )
            elif guides:
                recorder = _GuidedRecorder(restriction, stops.lengths, draw, sampling.guidance)
            else:
                recorder = _RestrictedRecorder(restriction, stops.lengths, draw)
        settings = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=list(self.spec.stop_token_ids),
            pad_token_id=self.spec.pad_token_id,
            # What is sampled here is left as the one choice.
            **GREEDY,
        )
        streams = None if tell is None else Streams(self.spec, sampling, call, tell)
        # That of its class: a checkpoint with a folder custom_generate has put its own over it.
        sequences = type(self.model).generate(
            self.model,
            **inputs,
            generation_config=settings,
            logits_processor=[recorder],
            stopping_criteria=[
                *([stops] if sampling.stop else []),
                *([] if streams is None else [_Streaming(streams, stops.lengths, start)]),
            ],
            **more,
        )
        new = sequences[: len(examples), start:]
        logprobs = recorder.of(new).cpu()
        further_codes = torch.stack(more['frames'].further, 1).cpu() if more else None
        responses = []
        for number, (ids, values) in enumerate(zip(new.cpu(), logprobs, strict=True)):
            # Behind a stop string stands padding, which is no end token.
            length = stops.lengths.get(number)
            own = ids[:length].tolist(), values[:length].tolist()
            grammar = None if restriction is None else restriction.grammar
            beside = {} if further_codes is None else {FURTHER: further_codes[number]}
            responses.append(sampled(self.spec, *own, self.version, sampling, grammar, beside))
        if streams is not None:
            streams.finish(responses)
        return responses


@contextmanager
def without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Within it, `generate()` of the model obeys the settings it is given and no others.

    What these leave open, it would take from the `generation_config.json` of the checkpoint.
    """
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


GREEDY = {'do_sample': False}


class _Recorder(LogitsProcessor):
    """Keeps the log-probability of each token that is sampled, and never more than one step of logits.

    It also keeps the `media` placeholders out: a response is text, and no model reads one without a medium.
    """

    def __init__(self, how: SetSampling, media: list[int], draw: Draw) -> None:
        self.how, self.media, self._draw = how, torch.tensor(media, dtype=torch.long), draw
        self._last: Tensor | None = None
        self._found: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:
            self._take(input_ids[:, -1])
        self._last, scores = self._step(input_ids, scores)
        return scores

    def _step(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities of what may come next, and what it is sampled by."""
        logprobs = (scores.float() / (self.how.temperature or 1.0)).log_softmax(-1)
        among = logprobs.index_fill(-1, self.media.to(scores.device), NOTHING) if len(self.media) else logprobs
        return logprobs, _only(self._draw(left_of(among, self.how)), scores)

    def of(self, new: Tensor) -> Tensor:
        """The log-probabilities of all new tokens, `(batch, length)`."""
        self._take(new[:, -1])
        return torch.stack(self._found, 1)

    def _take(self, ids: Tensor) -> None:
        assert self._last is not None
        self._found.append(self._last.gather(1, ids[: len(self._last), None]).squeeze(1))


class _RestrictedRecorder(_Recorder):
    """Keeps the log-probability of each token among those of its set, and to the grammar of each row.

    `ended` holds the rows that have ended otherwise than by a token, by number.
    """

    def __init__(self, restriction: Restriction, ended: Container[int], draw: Draw) -> None:
        super().__init__(SetSampling(), [], draw)
        self._restricted, self._grammar, self._ended = Restricted(restriction), restriction.grammar, ended
        self._states: list[State] | None = None

    def _step(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, left = self._restricted(scores, self._advanced(input_ids))
        return logprobs, _only(self._draw(left), left)

    def _advanced(self, input_ids: Tensor) -> list[State]:
        if self._states is None:
            self._states = [self._grammar.start() for _ in input_ids]
        else:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                if row not in self._ended:
                    self._states[row].advance(token)
        return self._states


class _GuidedRecorder(_RestrictedRecorder):
    """The same with as many rows again behind unconditional prompts, which get the tokens that the first rows do.

    Codes are sampled by guided logits, here, because `generate()` would sample each row by itself.
    """

    def __init__(self, restriction: Restriction, ended: Container[int], draw: Draw, scale: float) -> None:
        super().__init__(restriction, ended, draw)
        self._scale = scale

    def _step(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        conditional, unconditional = scores.float().chunk(2)
        states = self._advanced(input_ids[: len(conditional)])
        codes = torch.tensor([state.number != TEXT for state in states], device=scores.device)
        led = torch.where(codes[:, None], guided(conditional, unconditional, self._scale), conditional)
        logprobs, left = self._restricted(led, states)
        return logprobs, _only(self._draw(left).repeat(2), scores)


class _FrameRecorder(_RestrictedRecorder):
    """Samples whole frames: which token a frame is hangs on its further codes too, where one of them is the end."""

    def __init__(
        self,
        restriction: Restriction,
        ended: Container[int],
        draw: Draw,
        codes: MediaCodes,
        model: WritesFrames,
        frames: FramesWritten,
    ) -> None:
        super().__init__(restriction, ended, draw)
        (self._own,) = codes.kinds.values()
        self._how = restriction.how[int(codes.set_of(torch.tensor([self._own.first[0]])))]
        self._model, self._frames = model, frames

    def _step(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        own, states = self._own, self._advanced(input_ids)
        first, end = own.first[0], own.closing[0]
        # The end and the code that its frame begins with are one choice of the model: only the code is sampled.
        both = torch.tensor(
            [all(any(a <= token < b for a, b in state.allowed) for token in (first, end)) for state in states],
            device=scores.device,
        )
        logprobs, left = self._restricted(scores.masked_fill(both[:, None] & _one_hot(end, scores), NOTHING), states)
        logprobs[:, end] = torch.where(both, logprobs[:, first + own.end_code], logprobs[:, end])
        ids = self._draw(left)
        further = self._model.further_codes(
            self._frames.states, (ids - first).clamp(0, own.books[0] - 1), self._sampled_of_book
        )
        ends = both & (ids == first + own.end_code) & (further == own.end_code).all(1)
        ids = torch.where(ends, end, ids)
        self._frames.further.append(further.masked_fill((ids == end)[:, None], own.end_code))
        return logprobs, _only(ids, scores)

    def _sampled_of_book(self, logits: Tensor) -> Tensor:
        # Behind the entries of a book are rows that stand for nothing; all books of a codec are of one size.
        return sample(logits[:, : self._own.further[0]], self._how, self._draw)


def _only(ids: Tensor, like: Tensor) -> Tensor:
    """Scores that leave one id of each row, `(rows,)`, the only choice."""
    return torch.full_like(like, NOTHING).scatter(1, ids[:, None], 0.0)


def _one_hot(token: int, like: Tensor) -> Tensor:
    return torch.arange(like.shape[-1], device=like.device) == token


class _StopStrings(StoppingCriteria):
    """Ends each row with the token that completes a stop string in what was generated; the prompt does not count.

    Attributes:
        lengths: tokens that were generated up to there, by row.
    """

    def __init__(self, spec: FamilySpec, stop: Sequence[str], start: int) -> None:
        self.spec, self.stop, self.start = spec, stop, start
        self.lengths: dict[int, int] = {}
        # Most tokens are a byte or more; the rest is for those that say nothing, and for halves of characters.
        self._reach = 2 * max((len(string.encode()) for string in stop), default=0) + 8

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            if row not in self.lengths:
                text = text_between(self.spec, ids[-self._reach :])
                if any(string in text for string in self.stop):
                    self.lengths[row] = len(ids)
        ended = [row in self.lengths for row in range(len(input_ids))]
        return torch.tensor(ended, device=input_ids.device)


class _Streaming(StoppingCriteria):
    """Tells what rows say as they grow, and ends those that whoever is told has enough of: `lengths` as above."""

    def __init__(self, streams: Streams, lengths: dict[int, int], start: int) -> None:
        self.streams, self.lengths, self.start = streams, lengths, start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            if row not in self.lengths and self.streams.grown(row, ids):
                self.lengths[row] = len(ids)
        ended = [row in self.lengths for row in range(len(input_ids))]
        return torch.tensor(ended, device=input_ids.device)
