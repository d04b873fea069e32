"""What every rollout engine is: prompts in, responses out. What was decoded is never encoded again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from align_anything.core.errors import SettingsError, TrainingError
from align_anything.core.types import Example, MediaKind, Piece, Response
from align_anything.models.codes import DIMENSIONS, KindOfCodes, MediaCodes
from align_anything.models.family import FamilySpec
from align_anything.rollouts.grammar import Emission, Grammar
from align_anything.rollouts.restricted import Restriction, SetSampling


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        responses: how many for each prompt.
        max_new_tokens: length limit of a response.
        temperature: divides the logits; 0 decodes greedily.
        top_p: nucleus sampling: probability mass of the tokens to sample from, 1 for all. Codes of media heed it not.
        top_k: number of most likely tokens to sample from, 0 for all. Codes of media have `emit_top_k`.
        repetition_penalty: divides the logits of tokens that are there already, 1 for nothing.
        stop: stop strings: a response ends with the token that completes one of them.
        include_stop_str_in_output: whether its text keeps the stop string. Its token ids always do: they were sampled,
            and they are what is trained.
        seed: of the generator.
        seeds: of each Example, in place of `seed`: what is sampled of one does not hang on the others.
        emit: what media responses may hold; None for text alone.
        emit_temperature: of the codes of each kind; `temperature` where it is not named.
        emit_top_k: the same as `top_k` for the codes of each kind; 0 where it is not named.
        guidance: how far codes of media are led from what the model makes of the unconditional prompts
            (`Example.unconditional`) to what it makes of the prompts themselves, and beyond; 1 samples by the prompts.
        eval_guidance: the same for evaluation data; None for `guidance`.
        eval_temperature: that of text in responses to evaluation data; None for `temperature`.
    """

    responses: int = 1
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = True
    seed: int = 0
    seeds: tuple[int, ...] | None = None
    emit: Emission | None = None
    emit_temperature: Mapping[MediaKind, float] = field(default_factory=dict)
    emit_top_k: Mapping[MediaKind, int] = field(default_factory=dict)
    guidance: float = 1.0
    eval_guidance: float | None = None
    eval_temperature: float | None = None

    def of_evaluation(self) -> Sampling:
        """Returns how responses to evaluation data are sampled."""
        own = self if self.eval_guidance is None else replace(self, guidance=self.eval_guidance)
        if self.eval_temperature is None:
            return own
        grids = () if self.emit is None else self.emit.grids
        codes = {kind: self.emit_temperature.get(kind, self.temperature) for kind in grids}
        return replace(own, temperature=self.eval_temperature, emit_temperature=codes)

    def how(self, codes: MediaCodes) -> tuple[SetSampling, ...]:
        """Returns how units of each set are sampled, in the order of `MediaCodes.sets`."""
        of_kinds = {
            kind: SetSampling(self.emit_temperature.get(kind, self.temperature), self.emit_top_k.get(kind, 0))
            for kind in codes.kinds
        }
        return tuple(codes.by_set(SetSampling(self.temperature, self.top_k, self.top_p), of_kinds))


Tell = Callable[[int, int, dict[str, Any]], bool | None]
"""Is told parts of responses as they are generated: the number of the Example, that of its response, and what comes
next of it, a piece of text or a medium. What it returns ends the response where it is true."""


class RolloutEngine(Protocol):
    """Generates with the weights that it was given last. Every rank has one and makes the same calls."""

    @property
    def model(self) -> Any:
        """What generates, as transformers or diffusers know it. Raises ModelError where it is in another process."""
        ...

    def generate(
        self, examples: Sequence[Example], sampling: Sampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """Returns `sampling.responses` responses to the prompt of each Example.

        `tell` is told what they say, part by part: while they are generated, by an engine that can, else at once.
        """
        ...

    def sync(self, version: int) -> None:
        """Takes the present weights of the policy, which has seen `version` updates."""
        ...

    def sleep(self) -> None:
        """Gives back what memory it can do without until the next `sync`."""
        ...


@dataclass
class Around:
    """What rollout engines have that stand around another one, and generate by it.

    Attributes:
        engine: what samples.
    """

    engine: RolloutEngine

    @property
    def model(self) -> Any:
        """That of the engine."""
        return self.engine.model

    def probe(self, examples: Sequence[Example], sampling: Sampling) -> None:
        """As the engine does, which has weights of its own. Every rank calls it."""
        self.engine.probe(examples, sampling)

    def sync(self, version: int) -> None:
        """As the engine does."""
        self.engine.sync(version)

    def sleep(self) -> None:
        """As the engine does."""
        self.engine.sleep()


def end_of(ids: Sequence[int], stops: Sequence[int]) -> int | None:
    """Returns how many of `ids` there are up to the first one among `stops`, that one included; None without one."""
    return next((number for number, token in enumerate(ids, 1) if token in stops), None)


def never_sampled(spec: FamilySpec) -> list[int]:
    """Returns the placeholders of media among the tokens that there are logits for; some families have theirs past it.

    A response is text, and no model reads a placeholder without a medium.
    """
    return sorted(token for token in spec.media_token_ids if token < spec.config.get_text_config().vocab_size)


def restriction_of(spec: FamilySpec, sampling: Sampling) -> Restriction | None:
    """Returns what may be sampled where and how, None for families without codes, which write nothing but text."""
    if spec.codes is None:
        return None
    end = spec.renderer.end_of_turn_id
    end = spec.stop_token_ids[0] if end is None else end
    grammar = Grammar.of(spec.codes, sampling.emit, spec.stop_token_ids, end, never_sampled(spec))
    return Restriction(grammar, sampling.how(spec.codes))


def check_emission(codes: MediaCodes | None, sampling: Sampling) -> None:
    """Raises SettingsError for media that a family with these codes cannot write, or not within the length limit.

    `codes` is None for families that write text alone.
    """
    emission = sampling.emit or Emission()
    known = {} if codes is None else codes.kinds
    problems = [
        f'model_cfgs.emit_size: this model writes no {kind}; it writes {", ".join(["text", *known])}.'
        for kind in emission.grids
        if kind not in known
    ]
    problems += [
        f'model_cfgs.{name}.{kind}: responses hold no {kind}, but {", ".join(emission.grids) or "text"}.'
        for name, own in (('emit_temperature', sampling.emit_temperature), ('emit_top_k', sampling.emit_top_k))
        for kind in own
        if kind not in emission.grids
    ]
    if emission.begins is not None and list(emission.grids) != [emission.begins]:
        problems.append(f'emit: a response that is one {emission.begins} holds that and nothing else.')
    if not problems:
        problems = [problem for kind in emission.grids for problem in _problems(known[kind], sampling, emission)]
    if emission.grids and sampling.repetition_penalty != 1:
        problems.append(
            'model_cfgs.repetition_penalty: it would keep codes from coming twice in a medium, and scores know nothing '
            'of it. Set it to 1.'
        )
    if emission.begins is not None:
        problems += [
            f'model_cfgs.{name}: it is of text, and a response is one {emission.begins}. Leave it out.{instead}'
            for name, is_set, instead in (
                ('top_p', sampling.top_p != 1, ''),
                ('top_k', sampling.top_k != 0, ' That of codes is emit_top_k.'),
                ('stop', bool(sampling.stop), ''),
            )
            if is_set
        ]
    openings = [known[kind].opening[:1] for kind in emission.grids if kind in known]
    if len(set(openings)) < len(openings):
        problems.append('emit: two kinds of media begin with the same token, so that they cannot be told apart.')
    if problems:
        raise SettingsError(problems)


def _problems(own: KindOfCodes, sampling: Sampling, emission: Emission) -> list[str]:
    kind, grid = own.kind, emission.grid(own)
    if own.size not in (None, grid):
        return [
            f'model_cfgs.emit_size.{kind}: every {kind} of this model has {list(own.size)} codes, not {list(grid)}.'
        ]
    if grid is None and (kind != 'audio' or own.row_end is not None):
        example = [16] * DIMENSIONS[kind]
        return [
            f'model_cfgs.emit_size.{kind}: the checkpoint does not declare how many codes it has. Name the grid that '
            f'the codec makes of the {kind}s of your data, such as {{{kind}: {example}}}.'
        ]
    if grid is not None and (len(grid) != DIMENSIONS[kind] or min(grid) < 1):
        return [f'model_cfgs.emit_size.{kind}: {list(grid)} is not {DIMENSIONS[kind]} numbers of codes.']
    if grid is not None and not _readable(own, grid):
        return [
            f'model_cfgs.emit_size.{kind}: a model without a token behind each row writes square images, not '
            f'{list(grid)}.'
        ]
    if not own.opening and emission.begins is None:
        return [
            f'model_cfgs.emit_size.{kind}: this model has no token that begins it, so that the response has to begin '
            'with it.'
        ]
    length = emission.shortest(own)
    inside = length - len(own.opening if grid is None else own.opening_of(grid)) - len(own.closing)
    if own.longest is not None and inside > own.longest:
        return [f'model_cfgs.emit_size.{kind}: it has {inside} tokens, but the model writes {own.longest} at most.']
    # The token behind it that ends the response.
    length += 1
    if length > sampling.max_new_tokens:
        return [
            f'model_cfgs.max_new_tokens = {sampling.max_new_tokens}, but a response with one {kind} has {length} '
            'tokens or more.'
        ]
    return []


def _readable(own: KindOfCodes, grid: Sequence[int]) -> bool:
    """Whether the grid of media can be told from their ids."""
    ids, _ = own.written(torch.zeros(len(own.books), *grid, dtype=torch.long))
    codes = own.read(ids[len(own.opening_of(grid)) : len(ids) - len(own.closing)].tolist())
    return codes is not None and codes.shape[1:] == torch.Size(grid)


def text_between(spec: FamilySpec, ids: Sequence[int]) -> str:
    """Returns what ids say, codes of media left out: no stop string ends in a medium."""
    return spec.text_of(ids if spec.codes is None else [token for token in ids if spec.codes.kind_of(token) is None])


def stop_string_end(spec: FamilySpec, ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """Returns how many of `ids` there are up to the one that completes a stop string; None where none is complete."""

    def complete(number: int) -> bool:
        text = text_between(spec, ids[:number])
        return any(string in text for string in stop)

    return bisect_left(range(len(ids)), True, key=complete) if stop and complete(len(ids)) else None


def said(spec: FamilySpec, piece: Piece, sampling: Sampling) -> list[dict[str, Any]]:
    """Returns what a generated response says: all that was sampled, less its end and an excluded stop string."""
    parts = spec.decode(piece)
    if sampling.include_stop_str_in_output:
        return parts
    kept = []
    for part in parts:
        starts = [part['text'].find(string) for string in sampling.stop] if part['type'] == 'text' else []
        start = min((start for start in starts if start >= 0), default=None)
        if start is not None:
            return [*kept, {**part, 'text': part['text'][:start]}]
        kept.append(part)
    return kept


def sampled(
    spec: FamilySpec,
    ids: Sequence[int],
    logprobs: Sequence[float],
    version: int,
    sampling: Sampling,
    grammar: Grammar | None = None,
    token_tensors: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Response:
    """Returns a generated response up to the first token that ends it.

    The policy chose every token, but for those that the grammar left no choice of. A medium that the length limit cut
    is not finished. `token_tensors` are what rides beside the ids, `(length, …)` each. Raises TrainingError for tokens
    that the grammar does not allow.
    """
    end = end_of(ids, spec.stop_token_ids)
    stopped = stop_string_end(spec, ids[:end], sampling.stop)
    end = end if stopped is None else stopped
    length = len(ids) if end is None else end
    chosen = torch.ones(length, dtype=torch.bool)
    if grammar is not None:
        try:
            chosen = torch.tensor(grammar.chosen(ids[:length]), dtype=torch.bool)
        except ValueError as error:
            raise TrainingError(f'the rollout engine does not keep to the grammar of media: {error}') from error
    kept = torch.tensor(ids[:length], dtype=torch.long)
    weights = chosen.float() if spec.codes is None else chosen * spec.codes.weights_of(kept)
    response = Response(
        ids=kept,
        weights=weights,
        token_tensors={name: tensor[:length] for name, tensor in token_tensors.items()},
        per_unit={'rollout': torch.tensor(logprobs[:length], dtype=torch.float32)[weights > 0]},
        finished=end is not None,
        version=version,
    )
    response.parts = said(spec, response, sampling)
    return response


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Lets a model evaluate as long as its context lasts, without dropout, and then train again if it did before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def tell_whole(found: Sequence[Sequence[Response]], tell: Tell | None) -> None:
    """Tells all parts of responses that are there."""
    for number, responses in enumerate(found):
        for which, response in enumerate(responses):
            for part in response.parts if tell is not None else ():
                tell(number, which, part)
