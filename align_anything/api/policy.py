"""A checkpoint in memory, to score conversations and to generate with."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from align_anything.algorithms.generate import Generating
from align_anything.configs.generation import GenerationRunCfgs
from align_anything.configs.layers import Call
from align_anything.configs.resolve import Resolved
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Message, Response
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import decode_conversations
from align_anything.models.spec import Spec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.rewards.base import Completion
from align_anything.trainers import launch
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.generator import Generator, generator_of, open_spec
from align_anything.trainers.runs.judges import judging_engine
from align_anything.trainers.runs.roles import ModelJudge, scores_responses, spec_of_role
from align_anything.trainers.runs.settings import dtype_of

Conversation = Sequence[Message]
"""Messages in Hugging Face chat form; media in them are paths, bytes, data URIs, PIL images, arrays."""
Prompt = str | Conversation
ANY = PAIRS['any_to_any']


@dataclass(frozen=True)
class Policy:
    """A checkpoint to score and to generate with. Its weights never change.

    Attributes:
        source: the checkpoint.
        spec: the rules of its family: what it reads and writes, how it encodes.
    """

    source: str
    spec: Spec
    _resolved: Resolved[GenerationRunCfgs, Generating]

    @property
    def model(self) -> Any:
        """The model of transformers, adapters in place, or the pipeline of diffusers."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; None of a pipeline."""
        return self.spec.tokenizer if self.spec.unit == 'token' else None

    @property
    def processor(self) -> Any:
        """Its processor; None of a text model and of a pipeline."""
        return self.spec.processor if self.spec.unit == 'token' else None

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Returns a number for the last answer of each conversation.

        A reward model says what it is worth; any other one the log-probability of its tokens. Raises SampleError for a
        conversation that cannot be read, and ModelError for a pipeline, which has no likelihood to tell.
        """
        raise NotImplementedError

    def generate(self, prompts: Sequence[Prompt], num_generations: int = 1, **sampling: Any) -> list[list[Response]]:
        """Returns `num_generations` responses to each prompt; `response.text` is the text of one, `parts` its media.

        A prompt is a text or a conversation. `sampling` are fields of `Sampling` that differ from the settings, such as
        `temperature`; of a pipeline those of `DenoisingSampling`, such as `steps`. Raises SampleError for a prompt that
        cannot be read, and ModelError for a reward model.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Writer(Policy):
    """A checkpoint that generates."""

    _generator: Generator

    @property
    def model(self) -> Any:
        """The model of transformers, adapters in place, or the pipeline of diffusers with its denoiser."""
        return self._generator.model

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Returns the log-probability of the last answer of each conversation."""
        if self.spec.unit != 'token':
            raise ModelError(f'{self.source} is a pipeline of diffusers: it has no likelihood of media to tell.')
        found = []
        for conversation in _decoded(conversations, self._generator.options):
            batch = self._scorer.collate([self.spec.encode(self._generator.prepare(conversation), 'last')])
            with torch.no_grad():
                found.append(float(self._scorer(batch.to(self._generator.device)).values.sum()))
        return found

    def generate(self, prompts: Sequence[Prompt], num_generations: int = 1, **sampling: Any) -> list[list[Response]]:
        """Returns `num_generations` responses to each prompt."""
        wanted = replace(self._generator.sampling, responses=num_generations, **sampling)
        examples = [
            self._generator.encode(_conversation(prompt), source=f'prompt {number}')
            for number, prompt in enumerate(prompts, 1)
        ]
        return self._generator.generate(examples, wanted)

    @cached_property
    def _scorer(self) -> TokenPolicy:
        collate = TokenCollator(self.spec, 'padded', tuple(sorted(self.spec.continuous)))
        return TokenPolicy(self.model, collate, dtype=dtype_of(self._resolved.cfgs)).eval()


@dataclass(frozen=True)
class Judge(Policy):
    """A reward or cost model."""

    _judge: ModelJudge

    @property
    def model(self) -> Any:
        """The model of transformers with its score head."""
        return self._judge.engine.policy.model

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Returns what the last answer of each conversation is worth."""
        completions = [
            Completion(turns[:-1], turns[-1], {}, 0, True, f'conversation {number}')
            for number, turns in enumerate(_decoded(conversations, {}), 1)
        ]
        found = self._judge(completions)
        for skipped in self._judge.unread():
            raise SampleError(f'{skipped.source}: {skipped.reason}')
        return found

    def generate(self, prompts: Sequence[Prompt], num_generations: int = 1, **sampling: Any) -> list[list[Response]]:
        """Raises ModelError: it judges answers and writes none."""
        raise ModelError(f'{self.source} is a reward model: it scores answers and writes none.')


def load_policy(model: str | Path, **settings: Any) -> Policy:
    """Returns a checkpoint to score and to generate with.

    Args:
        model: a checkpoint of transformers, a pipeline of diffusers, an adapter, a reward model, or the output folder
            of a run.
        settings: those of the command `generate`, such as `max_new_tokens`, `temperature` and `bf16`.

    Raises:
        SettingsError: with all that is wrong with the settings.
        ModelError: for a checkpoint that cannot be loaded.
    """
    call = Call('load_policy', {'model': model, **settings})
    # What the environment sets is meant for runs.
    resolved = launch.settings_of(ANY, Generating, [], {}, call)
    launch.quieten_libraries()
    source = resolved.cfgs.model_cfgs.model_name_or_path
    if scores_responses(source):
        spec = spec_of_role(resolved.cfgs, source)
        engine = judging_engine(resolved.cfgs, spec, ANY, resolved.algorithm, source)
        return Judge(source, spec, resolved, ModelJudge(source, engine, spec, 1, spec.max_length))
    resolved, pair, spec = open_spec(resolved)
    return Writer(source, spec, resolved, generator_of(resolved, pair, spec, live=True))


def generate(
    model: str | Path, prompts: Sequence[Prompt], *, num_generations: int = 1, **settings: Any
) -> list[list[Response]]:
    """Returns responses of a checkpoint to each prompt, and keeps nothing of it in memory.

    Arguments and errors as `load_policy` and `Policy.generate`.
    """
    return load_policy(model, **settings).generate(prompts, num_generations)


def _conversation(prompt: Prompt) -> Conversation:
    return [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else prompt


def _decoded(conversations: Sequence[Conversation], options: Any) -> list[list[Message]]:
    return decode_conversations([bind_media(copy(turns), {}, options=options) for turns in conversations])
