"""A checkpoint opened to generate with: what `generate`, chat, servers, evaluation and the Python API stand on."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from align_anything.algorithms.generate import Generating
from align_anything.configs.actions import SPOKEN
from align_anything.configs.generation import GenerationRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.core.errors import ModelError, SampleError, SettingsError
from align_anything.core.types import ACTION, MEDIA_KINDS, Conversation, Example, Message, Response
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.media import decode_conversations
from align_anything.datasets.prompts import PromptTask
from align_anything.engines.process_group import device_of_rank
from align_anything.models.acting.known import ACTS
from align_anything.models.adapter import find_adapter
from align_anything.models.checkpoint import stored_tensor
from align_anything.models.diffusion.checkpoint import is_pipeline
from align_anything.models.score import SCORE_HEAD
from align_anything.models.spec import Spec
from align_anything.rollouts.base import RolloutEngine, Tell
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs import action_rollouts, denoised_rollouts, flow_rollouts, rollout_engine
from align_anything.trainers.runs.acting import require_same_actions
from align_anything.trainers.runs.action_spaces import acting
from align_anything.trainers.runs.data import media_options, require_readable, require_writable
from align_anything.trainers.runs.model_defaults import with_model_defaults
from align_anything.trainers.runs.pipelines import usual_guidance
from align_anything.trainers.runs.rollout_engine import check_rollouts
from align_anything.trainers.runs.sampling import is_guided
from align_anything.trainers.runs.settings import codes_of_run, spec_of

Part = dict[str, Any]


class Kind(Protocol):
    """How a kind of models generates, one file each in this package; the spec of a checkpoint says which it is."""

    def sampling_of(
        self, resolved: Resolved[GenerationRunCfgs, Generating], pair: Pair, spec: Spec, steps_of_rollout: int
    ) -> Any: ...

    def open_frozen(
        self, resolved: Resolved[GenerationRunCfgs, Generating], spec: Spec, sampling: Any, live: bool
    ) -> tuple[RolloutEngine, Callable[[Conversation], Conversation]]: ...


KINDS: Mapping[str, Kind] = {
    'token': rollout_engine,
    'denoising step': denoised_rollouts,
    'action': action_rollouts,
    'denoised action': flow_rollouts,
}
"""By what a unit of their responses is, see `Spec.unit`."""


@dataclass(frozen=True)
class Generator:
    """A checkpoint that generates. Its weights never change.

    Attributes:
        pair: what it reads and writes here.
        spec: the rules of its family.
        sampling: how responses are sampled, as the settings say: a `Sampling`, of a pipeline a `DenoisingSampling`.
            `replace` it for another number of responses, other seeds, and the like.
        rollouts: what generates.
        device: where.
        options: what decoding media of each kind heeds.
        prepare: what is done to a decoded conversation before it is encoded.
        guided: whether prompts are encoded with their text left empty too.
    """

    pair: Pair
    spec: Spec
    sampling: Any
    rollouts: RolloutEngine
    device: torch.device
    options: Mapping[str, Mapping[str, Any]]
    prepare: Callable[[Conversation], Conversation]
    guided: bool
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        source: str = '',
        folders: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        reserved: int | None = None,
    ) -> Example:
        """Returns the Example of a conversation that a response is to follow, its media decoded.

        Args:
            messages: in Hugging Face chat form; media are paths, bytes, data URIs, arrays, PIL images, `Media`.
            source: what messages call it.
            folders: where relative paths of media start, by kind.
            meta: further columns, which rewards may read; media and `tools` in it are put into the conversation.
            reserved: tokens left to the response; None for those of `sampling`.

        Raises SampleError for a conversation that cannot be read, one that is too long, and media that cannot be read.
        """
        meta = meta or {}
        written = bind_media(messages, meta, folders, options=self.options, needs_reply=False)
        for kind in sorted({part['type'] for turn in written for part in turn['content']} & {*MEDIA_KINDS}):
            if kind not in self.spec.reads | self.spec.emits:
                reads = ', '.join(['text', *sorted(self.spec.reads)])
                raise SampleError(f'the conversation holds {kind} media, but the model reads {reads}')
        acts = any(part['type'] == ACTION for turn in written for part in turn['content'])
        if acts and ACTION not in self.spec.emits:
            raise SampleError('the conversation holds actions, but the model does not act')
        (decoded,) = decode_conversations([written])
        task = PromptTask(self.spec.encode_prompt, self.longest(reserved), self.guided)
        example = task.encode([self.prepare(decoded)])
        example.source = source
        example.meta.update({key: value for key, value in meta.items() if key not in MEDIA_KINDS})
        return example

    @property
    def model(self) -> Any:
        """The model of transformers, or the pipeline of diffusers with its denoiser. Raises ModelError of vLLM's."""
        return self.rollouts.model

    def longest(self, reserved: int | None = None) -> int:
        """Returns how many units a prompt may have beside so many of a response; None for those of `sampling`."""
        if self.spec.unit != 'token':
            return sys.maxsize
        return self.spec.max_length - (self.sampling.max_new_tokens if reserved is None else reserved)

    def generate(
        self, examples: Sequence[Example], sampling: Any | None = None, tell: Tell | None = None
    ) -> list[list[Response]]:
        """Returns the responses to each Example, media in their `parts` decoded.

        `sampling` is that of the settings unless it is given; with `seeds` in it, one for each Example, no response
        hangs on what else is generated. `tell` is told the parts of responses as they are generated, see `Tell`. Calls
        of several threads wait for each other.
        """
        with self._lock:
            return self.rollouts.generate(examples, sampling or self.sampling, tell)

    def stream(self, example: Example, sampling: Any | None = None) -> Iterator[Part | Response]:
        """Yields what one response says as it is generated, pieces of text and whole media, and then the Response.

        It is the response that `generate` gives with the same sampling. Closing the iterator ends the generation.
        """
        said: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        left = threading.Event()

        def tell(number: int, which: int, part: Part) -> bool:
            said.put(part)
            return left.is_set()

        # A new thread would compute on another number of cores until it asks torch for theirs.
        with ThreadPoolExecutor(1, initializer=torch.get_num_threads) as thread:
            one = replace(sampling or self.sampling, responses=1)
            generated = thread.submit(self.generate, [example], one, tell)
            generated.add_done_callback(lambda _: said.put(None))
            try:
                while (part := said.get()) is not None:
                    yield part
                ((response,),) = generated.result()
                yield response
            finally:
                left.set()


def open_spec(
    resolved: Resolved[GenerationRunCfgs, Generating], pair: Pair | None = None, rows: ExampleDataset | None = None
) -> tuple[Resolved[GenerationRunCfgs, Generating], Pair, Spec]:
    """Returns the settings as the kind of model makes them, the pair, and the rules of the family; reads no weights.

    `pair` None is whatever the model reads and writes; `rows` are prompts that are answered, formatted and not decoded.
    Raises SettingsError and ModelError for a checkpoint that generates nothing, or not what the pair is about, and for
    settings that mean nothing for it; DataError for prompts whose pictures are turned otherwise than the model learned.
    """
    require_generating(resolved.cfgs.model_cfgs.model_name_or_path)
    resolved = with_model_defaults(resolved)
    cfgs = resolved.cfgs
    spec, source = spec_of(cfgs), cfgs.model_cfgs.model_name_or_path
    pair = pair or pair_of(spec)
    if ACTION not in pair.writes:
        _require_no_actions(cfgs, source)
    elif spec.unit == 'token' or spec.unit in ACTS:
        acting(cfgs, spec, resolved.algorithm, rows)
    require_same_actions(cfgs.environment_cfgs, spec)
    spec.codes = codes_of_run(cfgs, pair, resolved.algorithm, spec)
    require_readable(pair, spec, source)
    require_writable(pair, spec, source)
    if spec.unit != 'token' and not spec.emits & pair.writes:
        raise ModelError(
            f"{source} (model_type '{spec.model_type}') writes {' and '.join(sorted(spec.emits))} and no text, but "
            f"answers of the pair '{pair.name}' are text: choose a pair such as "
            f'{"text_video_to_action" if spec.unit in ACTS else f"text_to_{min(spec.emits)}"}.'
        )
    if cfgs.model_cfgs.guidance_scale is None:
        scale = usual_guidance(spec) if spec.unit == 'denoising step' else 1.0
        models = cfgs.model_cfgs.model_copy(update={'guidance_scale': scale})
        resolved = replace(resolved, cfgs=cfgs.model_copy(update={'model_cfgs': models}))
    check_rollouts(resolved)
    return resolved, pair, spec


def _require_no_actions(cfgs: GenerationRunCfgs, source: str) -> None:
    asked = [key for key in SPOKEN if getattr(cfgs.action_cfgs, key) is not None]
    if asked:
        raise SettingsError(
            [f'action_cfgs.{key}: {source} says no actions of numbers here; leave it out.' for key in asked]
        )


def open_generator(resolved: Resolved[GenerationRunCfgs, Generating], pair: Pair | None = None) -> Generator:
    """Opens the checkpoint of the settings, an adapter on its model, for prompts as they come.

    `pair` None is whatever the model reads and writes. Raises as `open_spec` does, and for weights that cannot be read.
    """
    return generator_of(*open_spec(resolved, pair), live=True)


def generator_of(resolved: Resolved[GenerationRunCfgs, Generating], pair: Pair, spec: Spec, *, live: bool) -> Generator:
    """Opens the weights of what `open_spec` returned. Every rank calls it.

    `live` says whether `encode` is to be called; else prompts come encoded by `spec`, from data that was prepared.
    """
    cfgs, kind = resolved.cfgs, KINDS[spec.unit]
    sampling = kind.sampling_of(resolved, pair, spec, 1)
    rollouts, prepare = kind.open_frozen(resolved, spec, sampling, live)
    heard = {'audio': {'rate': spec.audio_rate}, 'video': {'rate': spec.audio_rate}}
    # What is shown to a model that acts is turned as what it learned from; rows of data say that themselves.
    space = spec.space if live and ACTION in spec.emits else None
    turned = {} if space is None else {'image': space.pictures or {}}
    options = {
        name: {**own, **heard.get(name, {}), **turned.get(name, {})}
        for name, own in media_options(cfgs.data_cfgs).items()
    }
    return Generator(pair, spec, sampling, rollouts, device_of_rank(), options, prepare, is_guided(cfgs.model_cfgs))


def pair_of(spec: Spec) -> Pair:
    """The pair of whatever a model reads and writes."""
    if spec.unit in ACTS or (spec.codes is not None and ACTION in spec.codes.kinds):
        return Pair('text_video_to_action', spec.reads, frozenset({ACTION}), writes_text=False)
    writes_text = spec.unit == 'token' and not (spec.codes is not None and spec.codes.wordless)
    return Pair('any_to_any', spec.reads, spec.emits - {ACTION}, writes_text=writes_text)


def require_generating(source: str) -> None:
    """Raises ModelError for a checkpoint, or an adapter, with a score head: it judges answers and writes none."""
    if is_pipeline(source):
        return
    adapter = find_adapter(source)
    heads = () if adapter is None else adapter.settings.get('modules_to_save') or ()
    # A checkpoint that is not there, or damaged, is told of where it is opened.
    if SCORE_HEAD in heads or (adapter is None and _has_head(source)):
        raise ModelError(
            f'{source} has a score head ({SCORE_HEAD}), so it is a reward model or a critic: it scores answers and '
            'writes none. Ask it with rm_score, name it as reward_model_name_or_path, or name the model to generate '
            'with.'
        )


def _has_head(source: str) -> bool:
    try:
        return stored_tensor(source, f'{SCORE_HEAD}.weight') is not None
    except (ModelError, OSError, ValueError):
        return False
