"""A checkpoint that answers requests: what the server asks, said to the generator of a run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import Any

from align_anything.core.errors import SampleError, SettingsError
from align_anything.core.types import ACTION, MEDIA_KINDS, MediaKind, Message, Response
from align_anything.models.call_form import call_form
from align_anything.rollouts.base import Tell, check_emission
from align_anything.rollouts.grammar import Emission
from align_anything.serve.answering import CallReader, Prompt, Wish
from align_anything.serve.messages import MediaLimits, require_short
from align_anything.trainers.runs.generator import Generator

WRITTEN = (*MEDIA_KINDS, ACTION)
OF_TEXT = ('max_new_tokens', 'temperature', 'top_p', 'top_k', 'repetition_penalty')
OF_OTHERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    'denoising step': ('denoises and writes no tokens', ('steps', 'guidance_scale')),
    'action': ('acts and writes no tokens', ('temperature',)),
    'denoised action': ('denoises what it does and writes no tokens', ('steps',)),
}
"""What is said of a model that writes no tokens, and what of a wish it obeys, by its unit."""


class Checkpoint:
    """Meets `Answerer` with an open `Generator`.

    Args:
        generator: it.
        limits: of the media in a request.
    """

    def __init__(self, generator: Generator, limits: MediaLimits) -> None:
        self._generator, self._limits = generator, limits
        options = limits.of_decoding(generator.options)
        # Tokenizers keep a state while they work, and prompts are encoded as answers are decoded.
        self._writes_tokens = generator.spec.unit == 'token'
        spec = generator.spec if not self._writes_tokens else deepcopy(generator.spec)
        self._encoder = replace(generator, spec=spec, options=options)
        self._encoding = threading.Lock()
        pair = generator.pair
        self.reads: frozenset[MediaKind] = generator.spec.reads
        self.emits: frozenset[MediaKind] = pair.writes
        self.writes_text = pair.writes_text

    @cached_property
    def _calls(self) -> CallReader | None:
        return call_form(self._generator.spec.renderer) if self._writes_tokens else None

    def calls(self) -> CallReader | None:
        """As `Answerer.calls`."""
        return self._calls

    def prepare(self, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]], wish: Wish) -> Prompt:
        """As `Answerer.prepare`."""
        wish = self._settled(wish)
        sampling = self._sampling(wish)
        guided = self._scale(sampling) != 1
        with self._encoding:
            encoder = replace(self._encoder, guided=guided)
            example = encoder.encode(turns, meta={'tools': list(tools)} if tools else {}, reserved=1)
        require_short(example.conversation, self._limits)
        if not self._writes_tokens:
            return Prompt(example, 0, wish)
        # Who names no limit gets what fits; who names one gets it, or is told that it does not fit.
        longest, length = self._generator.spec.max_length, len(example.prompt)
        asked = wish.max_new_tokens or self._generator.sampling.max_new_tokens
        if wish.max_new_tokens is not None and length + asked > longest:
            raise SampleError(
                f'the prompt has {length} tokens, and with {asked} of an answer it is longer than the {longest} of '
                'this model.'
            )
        return Prompt(example, length, replace(wish, max_new_tokens=min(asked, longest - length)))

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], tell: Tell) -> list[list[Response]]:
        """As `Answerer.generate`."""
        sampling = replace(self._sampling(prompts[0].wish), seeds=tuple(seeds))
        return self._generator.generate([prompt.content for prompt in prompts], sampling, tell)

    def _settled(self, wish: Wish) -> Wish:
        """The wish with what the settings say in place of None, so that what is meant alike is equal."""
        own, kinds = self._generator.sampling, wish.kinds
        known = {kind for kind in WRITTEN if kind in self.emits} | ({'text'} if self.writes_text else set())
        if kinds is not None and not kinds <= known:
            raise SettingsError(
                [f'this model writes {" and ".join(sorted(known))}, and no {" or ".join(sorted(kinds - known))}.']
            )
        if not self._writes_tokens:
            what, obeyed = OF_OTHERS[self._generator.spec.unit]
            names = [name for name in (*OF_TEXT, 'stop', 'steps', 'guidance_scale') if name not in obeyed]
            asked = [name for name in names if getattr(wish, name) not in (None, ())]
            if asked:
                raise SettingsError([f'this model {what}: leave out {", ".join(asked)}.'])
            mine = {name: self._own(name) if getattr(wish, name) is None else getattr(wish, name) for name in obeyed}
            return replace(wish, **mine, kinds=None)
        if wish.steps is not None:
            raise SettingsError(['this model writes tokens and denoises nothing: leave out steps.'])
        kinds = frozenset(known) if kinds is None else kinds
        if kinds == {'text'} and wish.guidance_scale is not None:
            raise SettingsError(['guidance_scale is of media, and the answer is text: leave it out.'])
        # An answer that is one medium has no words for these to be of.
        of_words = {'top_p': own.top_p, 'top_k': own.top_k, 'stop': own.stop} if 'text' in kinds else {}
        given = {'temperature': own.temperature, 'repetition_penalty': own.repetition_penalty, **of_words}
        given = {name: value for name, value in given.items() if getattr(wish, name) in (None, ())}
        scale = own.guidance if wish.guidance_scale is None else wish.guidance_scale
        return replace(wish, **given, guidance_scale=scale, kinds=kinds)

    def _sampling(self, wish: Wish) -> Any:
        """How responses are sampled. Raises SettingsError where the model cannot write them so."""
        own = self._generator.sampling
        if not self._writes_tokens:
            _, obeyed = OF_OTHERS[self._generator.spec.unit]
            told = {name: getattr(wish, name) for name in obeyed if name != 'guidance_scale'}
            if 'guidance_scale' in obeyed:
                told['guidance'] = replace(own.guidance, scale=wish.guidance_scale)
            return replace(own, responses=wish.responses, **told)
        media = [kind for kind in WRITTEN if kind in wish.kinds]
        emit, told = None, {name: getattr(wish, name) for name in OF_TEXT if getattr(wish, name) is not None}
        if media:
            emit = Emission({kind: own.emit.grids[kind] for kind in media}, None if 'text' in wish.kinds else media[0])
            told = told if 'text' in wish.kinds else {'top_p': 1.0, 'top_k': 0, **told}
        sampling = replace(
            own,
            responses=wish.responses,
            stop=wish.stop,
            include_stop_str_in_output=False,
            emit=emit,
            emit_temperature={kind: value for kind, value in own.emit_temperature.items() if kind in media},
            emit_top_k={kind: value for kind, value in own.emit_top_k.items() if kind in media},
            guidance=wish.guidance_scale if media else 1.0,
            **told,
        )
        check_emission(self._generator.spec.codes, sampling)
        return sampling

    def _own(self, name: str) -> Any:
        """What the settings say, of a model that writes no tokens."""
        own = self._generator.sampling
        return own.guidance.scale if name == 'guidance_scale' else getattr(own, name)

    def _scale(self, sampling: Any) -> float:
        if self._writes_tokens:
            return sampling.guidance
        return sampling.guidance.scale if 'guidance_scale' in OF_OTHERS[self._generator.spec.unit][1] else 1.0
