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
from align_anything.models.family import FamilySpec
from align_anything.models.frames import FramesWritten, WritesFrames
from align_anything.policies.guidance import guided
from align_anything.policies.token.hidden import cast_floats
from align_anything.rollouts.base import Sampling, never_sampled, restriction_of, sampled, text_between
from align_anything.rollouts.grammar import State
from align_anything.rollouts.restricted import NOTHING, Restricted, Restriction, sample, sampled_of


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

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        """Returns `sampling.responses` responses to the prompt of each Example."""
        wanted = [number for number in range(len(examples)) for _ in range(sampling.responses)]
        found: list[list[Response]] = [[] for _ in examples]
        training = self.model.training
        self.model.eval()
        devices = [self.model.device] if self.model.device.type == 'cuda' else []
        random_state = torch.random.fork_rng(devices=devices)
        with torch.no_grad(), self.gathered(), random_state, without_own_settings(self.model):
            torch.manual_seed(sampling.seed)
            for numbers in self._calls([example.prompt for example in examples], wanted):
                responses = self._generate([examples[number] for number in numbers], sampling)
                for number, response in zip(numbers, responses, strict=True):
                    found[number].append(response)
        self.model.train(training)
        return found

    def _calls(self, prompts: Sequence[Piece], wanted: Sequence[int]) -> list[list[int]]:
        """Splits the numbers of prompts into calls, each of prompts that the class takes together, of like length."""
        together: dict[Hashable, list[int]] = {}
        for number in wanted:
            together.setdefault(self.spec.generation_key(prompts[number]), []).append(number)
        calls = []
        for numbers in together.values():
            ordered = sorted(numbers, key=lambda number: len(prompts[number]))
            calls += [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]
        return calls

    def _generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Response]:
        device, guides = self.model.device, sampling.guidance != 1
        prompts = [example.prompt for example in examples]
        if guides:
            prompts += [example.unconditional for example in examples]
        inputs = cast_floats(self.spec.generation_inputs(prompts), self.dtype)
        inputs = map_tensors(inputs, lambda tensor: tensor.to(device))
        start = inputs['input_ids'].shape[1]
        stops = _StopStrings(self.spec, sampling.stop, start)
        restriction, more = restriction_of(self.spec, sampling), {}
        if restriction is None:
            recorder, how = _Recorder(sampling.temperature, never_sampled(self.spec)), _sampling_arguments(sampling)
        else:
            # Temperature, top-p and top-k are those of each set.
            how = _sampling_arguments(Sampling())
            if self.spec.codes.further:
                more['frames'] = FramesWritten()
                recorder = _FrameRecorder(
                    restriction, stops.lengths, self.spec.codes, bare_model(self.model), more['frames']
                )
            elif guides:
                recorder = _GuidedRecorder(restriction, stops.lengths, sampling.guidance)
            else:
                recorder = _RestrictedRecorder(restriction, stops.lengths)
        settings = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=list(self.spec.stop_token_ids),
            pad_token_id=self.spec.pad_token_id,
            **how,
        )
        # That of its class: a checkpoint with a folder custom_generate has put its own over it.
        sequences = type(self.model).generate(
            self.model,
            **inputs,
            generation_config=settings,
            logits_processor=[recorder],
            stopping_criteria=[stops] if sampling.stop else [],
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
            further = None if further_codes is None else further_codes[number]
            responses.append(sampled(self.spec, *own, self.version, sampling, grammar, further))
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


def _sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    if not sampling.temperature:
        return {'do_sample': False}
    # Left out, top_k would be 50.
    return {
        'do_sample': True,
        'temperature': sampling.temperature,
        'top_p': sampling.top_p,
        'top_k': sampling.top_k,
    }


class _Recorder(LogitsProcessor):
    """Keeps the log-probability of each token that is sampled, and never more than one step of logits.

    It also keeps the `media` placeholders out: a response is text, and no model reads one without a medium.
    """

    def __init__(self, temperature: float, media: list[int]) -> None:
        self.temperature, self.media = temperature or 1.0, media
        self._last: Tensor | None = None
        self._found: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:
            self._take(input_ids[:, -1])
        self._last, scores = self._step(input_ids, scores)
        return scores

    def _step(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities of what may come next, and what it is sampled by."""
        logprobs = (scores.float() / self.temperature).log_softmax(-1)
        if self.media:
            scores = scores.clone()
            scores[:, self.media] = float('-inf')
        return logprobs, scores

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

    def __init__(self, restriction: Restriction, ended: Container[int]) -> None:
        super().__init__(1.0, [])
        self._restricted, self._grammar, self._ended = Restricted(restriction), restriction.grammar, ended
        self._states: list[State] | None = None

    def _step(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return self._restricted(scores, self._advanced(input_ids))

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

    def __init__(self, restriction: Restriction, ended: Container[int], scale: float) -> None:
        super().__init__(restriction, ended)
        self._scale = scale

    def _step(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        conditional, unconditional = scores.float().chunk(2)
        states = self._advanced(input_ids[: len(conditional)])
        codes = torch.tensor([state.number != TEXT for state in states], device=scores.device)
        led = torch.where(codes[:, None], guided(conditional, unconditional, self._scale), conditional)
        logprobs, left = self._restricted(led, states)
        sampled_ids = sampled_of(left)[:, None].repeat(2, 1)
        return logprobs, torch.full_like(scores, NOTHING).scatter(1, sampled_ids, 0.0)


class _FrameRecorder(_RestrictedRecorder):
    """Samples whole frames: which token a frame is hangs on its further codes too, where one of them is the end."""

    def __init__(
        self,
        restriction: Restriction,
        ended: Container[int],
        codes: MediaCodes,
        model: WritesFrames,
        frames: FramesWritten,
    ) -> None:
        super().__init__(restriction, ended)
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
        ids = sampled_of(left)
        further = self._model.further_codes(
            self._frames.states, (ids - first).clamp(0, own.books[0] - 1), self._sampled_of_book
        )
        ends = both & (ids == first + own.end_code) & (further == own.end_code).all(1)
        ids = torch.where(ends, end, ids)
        self._frames.further.append(further.masked_fill((ids == end)[:, None], own.end_code))
        return logprobs, torch.full_like(scores, NOTHING).scatter(1, ids[:, None], 0.0)

    def _sampled_of_book(self, logits: Tensor) -> Tensor:
        # Behind the entries of a book are rows that stand for nothing; all books of a codec are of one size.
        return sample(logits[:, : self._own.further[0]], self._how)


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
