"""The latents and text embeddings of a run, made before it trains: by frozen encoders, once, into a store.

The encoders are freed before the denoiser is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import barrier, is_main
from align_anything.core.store import TensorStore
from align_anything.core.types import Conversation, Example, Piece
from align_anything.datasets.dataset import ExampleDataset, TaskAround
from align_anything.datasets.media.known import KnownMedia, known_store
from align_anything.engines.process_group import device_of_rank
from align_anything.models.diffusion.prepared import LATENTS, Prepared, Prompt, Size
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.models.fingerprint import weights_fingerprint
from align_anything.models.spec import Spec
from align_anything.trainers.runs.prepare import prepare_known
from align_anything.trainers.runs.settings import preview_turns

FOLDER, SETTING = 'prepared', 'diffusion_cfgs.prepared_dir'
PROMPT, MEDIA = 'prompt', 'media'


def prepare_latents(
    cfgs: RunCfgs, spec: Spec, datasets: Sequence[ExampleDataset], guided: bool = False
) -> KnownMedia | None:
    """Makes the latents and text embeddings of the rows of `datasets`, and lets `spec` read them.

    Returns what is known of their media then, None for other models than denoisers. Every rank calls it. The encoders
    are loaded where something is missing, and freed. The embedding of the empty prompt is made too, which
    prompt_dropout and guidance need (where text encoders see pictures, of each row if there is either, `guided` being
    the latter), and those of the prompts that are previewed.
    """
    if spec.unit != 'denoising step':
        return None
    previewed = [spec.prompt_of(turns) for turns in preview_turns(cfgs, spec.shown)]
    folder = cfgs.diffusion_cfgs.prepared_dir or Path(cfgs.logger_cfgs.output_dir) / FOLDER
    store = TensorStore(folder, FOLDER, fingerprint_of(spec), SETTING)
    known = KnownMedia(known_store(folder, SETTING), lambda role, kind: True)
    device = device_of_rank()
    encoders = Encoders(spec, device)
    prepared = Prepared(store, None if spec.text_length == spec.default_text_length else spec.text_length)
    emptied = guided or cfgs.data_cfgs.prompt_dropout > 0
    texts = TextMaker(store, prepared, encoders, emptied)
    pictures = [PicturesMaker(store, prepared, encoders)] if spec.shown else []
    makers = [texts, *pictures, LatentsMaker(store, prepared, encoders)]
    for dataset in datasets:
        prepare_known(makers, dataset, EncoderTask(dataset.task, spec), known, cfgs, device)
    if is_main():
        further = [_row(prompt) for prompt in (spec.blank_prompt(), *previewed)]
        for maker in (replace(texts, emptied=True), *pictures):
            keys = dict.fromkeys(key for row in further for key in maker.keys(row))
            missing = [key for key in keys if key not in store]
            store.put_all(maker.make(further, [], missing))
    barrier()
    store.refresh()
    spec.prepared = prepared
    return known


def fingerprint_of(spec: DiffusionSpec) -> list[str]:
    """Tells what the encoders of a pipeline make from what others do: by their weights, and by the family."""
    frozen = sorted(name for name, _ in _components(spec))
    return [spec.model_type, *(f'{name} {weights_fingerprint(spec.folder / name)}' for name in frozen)]


def _components(spec: DiffusionSpec) -> list[tuple[str, Any]]:
    trained = {*spec.denoisers, 'scheduler'}
    return [
        (name, entry)
        for name, entry in spec.index.items()
        if isinstance(entry, list) and entry[0] is not None and name not in trained
    ]


@dataclass
class Encoders:
    """The pipeline without its denoiser, opened when something is first asked of it."""

    spec: DiffusionSpec
    device: torch.device
    _opened: Any = None

    @property
    def pipeline(self) -> Any:
        """The frozen networks."""
        if self._opened is None:
            self._opened = self.spec.open(self.device)
        return self._opened


@dataclass
class EncoderTask(TaskAround):
    """The rows of another task, as what the encoders read of them."""

    spec: DiffusionSpec

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns an Example without units, whose `meta` holds the prompt, and the media with their sizes."""
        media = [self.spec.answer_of(conversation) for conversation in conversations if len(conversation) > 1]
        size = self.spec.size_of(media[0]) if media else None
        prompt = self.spec.prompt_of(conversations[0][:1], size)
        return _row(prompt, [(medium, size) for medium in media])


@dataclass(frozen=True)
class TextMaker:
    """Makes what the denoiser is given of the words of a prompt, an entry for each prompt and for the empty one.

    Attributes:
        emptied: whether there is an empty one for each prompt even where the text encoders see its pictures.
    """

    store: TensorStore
    prepared: Prepared
    encoders: Encoders
    emptied: bool
    name: str = 'text embeddings'

    def keys(self, example: Example) -> list[str]:
        """Returns the keys of a row's prompt and of the empty one."""
        return list(self._read(example))

    def make(
        self, batch: Sequence[Example], keys: Sequence[Sequence[str]], missing: Collection[str]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """Encodes the prompts of a batch that are missing, each once."""
        read = {key: prompt for example in batch for key, prompt in self._read(example).items()}
        if not missing:
            return {}
        made = self.encoders.spec.encode_read(self.encoders.pipeline, [read[key] for key in missing])
        return dict(zip(missing, made, strict=True))

    def _read(self, example: Example) -> dict[str, Prompt]:
        """What the text encoders see, by its key."""
        prompt = self.encoders.spec.read(example.meta[PROMPT])
        prompts = [prompt, replace(prompt, text='')] if self.emptied or not prompt.pictures else [prompt]
        return {self.prepared.text_key(prompt): prompt for prompt in prompts}


@dataclass(frozen=True)
class PicturesMaker:
    """Makes what the denoiser is given of the pictures of a prompt, an entry for each."""

    store: TensorStore
    prepared: Prepared
    encoders: Encoders
    name: str = 'pictures of prompts'

    def keys(self, example: Example) -> list[str]:
        """Returns the key of the pictures of a row's prompt."""
        return [self.prepared.pictures_key(example.meta[PROMPT])]

    def make(
        self, batch: Sequence[Example], keys: Sequence[Sequence[str]], missing: Collection[str]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """Encodes the pictures of a batch that are missing, each prompt's by themselves."""
        prompts = {self.prepared.pictures_key(prompt): prompt for prompt in (row.meta[PROMPT] for row in batch)}
        return {key: self.encoders.spec.encode_pictures(self.encoders.pipeline, prompts[key]) for key in missing}


@dataclass(frozen=True)
class LatentsMaker:
    """Makes the latents of media, an entry for each medium and size."""

    store: TensorStore
    prepared: Prepared
    encoders: Encoders
    name: str = 'latents'

    def keys(self, example: Example) -> list[str]:
        """Returns the keys of a row's media."""
        return [self.prepared.latents_key(medium, size) for medium, size in example.meta[MEDIA]]

    def make(
        self, batch: Sequence[Example], keys: Sequence[Sequence[str]], missing: Collection[str]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """Encodes the media of a batch that are missing, one by one: a latent hangs on nothing beside it."""
        spec, media = self.encoders.spec, {}
        for row, own in zip(batch, keys, strict=True):
            media |= dict(zip(own, row.meta[MEDIA], strict=True))
        made = {}
        for key in missing:
            medium, size = media[key]
            fitted = spec.fitted(medium, size)[None].to(self.encoders.device)
            made[key] = {LATENTS: spec.encode_media(self.encoders.pipeline, fitted)[0].cpu()}
        return made


def _row(prompt: Prompt, media: Sequence[tuple[Any, Size]] = ()) -> Example:
    empty = Piece(torch.zeros(0, dtype=torch.long), torch.zeros(0))
    return Example(empty, [], meta={PROMPT: prompt, MEDIA: media})
