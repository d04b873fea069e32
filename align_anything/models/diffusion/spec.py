"""The rules of a family of pipelines: everything about it that is not its weights, the `Spec` of it.

A response is one medium, its units draws of a noise level and noise (offline) or denoising steps (online). The base
class holds what all families share; `models/diffusion/families/<name>.py` holds one family each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Conversation, Example, MediaKind, Need, Piece
from align_anything.models.diffusion.conditioned import Conditioned
from align_anything.models.diffusion.opening import open_without
from align_anything.models.diffusion.prepared import LATENTS, Conditions, Prompt, Size
from align_anything.models.diffusion.process import DDPM, Process, process_of
from align_anything.models.diffusion.schedules import as_shift, dynamic_shift, flow_levels, timestep_levels
from align_anything.models.rendering import TrainOn, first_differing_turn, shared_turns

DENOISER = 'denoiser'
CONVOLUTIONS = 'its convolutions see what is beside a sample.'


@dataclass(frozen=True)
class Sizing:
    """What size media are brought to.

    Attributes:
        resolution: height and width in pixels; None for what the checkpoint was trained at.
        buckets: whether images and videos keep their aspect ratio, to the nearest of sizes of about as many pixels.
        num_frames: of a video; None for what the family has by default.
        seconds: of audio; None for what the checkpoint was trained at.
    """

    resolution: tuple[int, int] | None = None
    buckets: bool = False
    num_frames: int | None = None
    seconds: float | None = None


class Given(NamedTuple):
    """What a denoiser is given of samples of one size.

    Attributes:
        sample: `(rows, …)`.
        level: their noise levels, `(rows,)`.
        conditions: of each, `(rows, …)` by name.
    """

    sample: Tensor
    level: Tensor
    conditions: Mapping[str, Tensor]


class DiffusionSpec:
    """Turns conversations into Examples and answers what policies, rollouts and exports must know of a family.

    Picklable; holds the configurations of the components, never weights. Methods that need frozen networks are given
    `pipeline`, the pipeline of diffusers without its denoiser.

    Attributes:
        folder: of the checkpoint.
        source: by what name it was asked for, a folder or one of the hub.
        index: its model_index.json.
        configs: the configuration of each component by name.
        process: its noising process.
        prepared: what encoders made before training, or make as they are asked; None until there is such.
        audio_rate: samples per second that audio clips must have, None for families of other media.
        draws: draws of a noise level and noise for each response, offline.
        text_length: most tokens of a prompt that the denoiser sees.
        trains_text: whether text encoders are trained along, so that conditions are token ids.
    """

    unit: ClassVar[str] = 'denoising step'
    meets: ClassVar[Need] = 'transition'
    """What the score of a unit is at best; offline it is a score alone."""
    pipelines: ClassVar[tuple[str, ...]] = ()
    """Classes of diffusers in whose manner the family works."""
    emits: ClassVar[frozenset[MediaKind]] = frozenset({'image'})
    reads: ClassVar[frozenset[MediaKind]] = frozenset()
    shown: ClassVar[tuple[str, ...]] = ()
    """What the images of a prompt are, one after the other; none of families that read text alone."""
    denoiser: ClassVar[str] = 'transformer'
    """The component that is trained."""
    trainable_text: ClassVar[tuple[str, ...]] = ()
    """Text encoders that can be trained along."""
    lora_targets: ClassVar[tuple[str, ...]] = ('to_q', 'to_k', 'to_v', 'to_out.0')
    """Ends of the names of the linear layers that adapters go on by default."""
    channel_dim: ClassVar[int] = 0
    """Which dimension of latents counts their channels."""
    side_multiple: ClassVar[int] = 1
    """What the sides of latents must be a multiple of (patches)."""
    reads_audio_in_video: ClassVar[bool] = False
    rescales_guidance: ClassVar[bool] = False
    """Whether the pipeline gives guided predictions the norm of those with the prompt."""
    unopened: ClassVar[tuple[str, ...]] = ()
    """Further components that a pipeline need not have in memory to encode and decode."""
    no_checkpointing: ClassVar[str] = ''
    """Why the backward pass cannot compute blocks of the denoiser anew, where it cannot."""
    one_size: ClassVar[str] = 'its denoiser is not known to take more.'
    """Why a call cannot hold samples of several sizes, where it cannot; empty where `predict_several` can."""
    default_text_length: int | None = None
    """Most tokens of a prompt when the settings do not say so; None where the tokenizer alone does."""
    max_length: int = sys.maxsize
    codes: None = None

    def __init__(
        self,
        folder: Path,
        index: Mapping[str, Any],
        configs: Mapping[str, Mapping[str, Any]],
        *,
        sizing: Sizing | None = None,
        draws: int = 1,
        text_length: int | None = None,
    ) -> None:
        """Reads the configurations. Raises ModelError for what the family cannot train."""
        self.folder, self.index, self.configs = folder, dict(index), {name: dict(own) for name, own in configs.items()}
        self.source = str(folder)
        self.model_type: str = index['_class_name']
        self.sizing, self.draws = sizing or Sizing(), draws
        if text_length and self.default_text_length is None:
            raise ModelError(
                f'diffusion_cfgs.max_sequence_length: prompts of a {self.model_type} have the length that its '
                'tokenizer says. Leave it out.'
            )
        self.text_length = text_length or self.default_text_length
        self.components: dict[str, list[str]] = {DENOISER: ['']}
        self.prepared: Conditions | None = None
        self.trains_text = False
        self.process: Process = self.make_process()
        self.check()

    @property
    def kind(self) -> MediaKind:
        """The kind of media that it writes."""
        (kind,) = self.emits
        return kind

    @property
    def audio_rate(self) -> int | None:
        """Samples per second that audio clips must have; None for a family that takes none."""
        return None

    @property
    def denoisers(self) -> tuple[str, ...]:
        """The components that are trained: experts for some noise levels each, and text encoders behind a denoiser."""
        return (self.denoiser, *(self.trainable_text if self.trains_text else ()))

    def joined(self, parts: Mapping[str, nn.Module]) -> nn.Module:
        """Returns the components of `denoisers` as the one module that is trained."""
        if self.trains_text:
            return Conditioned(self.denoiser, parts)
        (part,) = parts.values()
        return part

    def train_text(self) -> None:
        """Makes the text encoders components that are trained. Raises ModelError for a family where they are not."""
        if not self.trainable_text or any(self.configs[name].get('use_attention_mask') for name in self.trainable_text):
            raise ModelError(
                f'diffusion_cfgs.train_text_encoder: the text encoders of {self.folder}, a {self.model_type}, are not '
                'trained along: only those of Stable Diffusion 1, 2 and XL are, CLIP that reads no mask.'
            )
        self.trains_text = True
        # Those of a critic are behind its name for the denoiser.
        self.components |= {name: [name, f'{DENOISER}.{name}'] for name in self.trainable_text}

    @property
    def timesteps(self) -> int:
        """What a flow's noise level is multiplied with for the denoiser."""
        return self.configs['scheduler'].get('num_train_timesteps', 1000)

    def make_process(self) -> Process:
        """Returns the noising process. Raises ModelError where it is not known."""
        return process_of(self.configs['scheduler'], str(self.folder))

    def check(self) -> None:
        """Raises ModelError for a size that the family cannot have."""

    # Sizes

    def default_size(self) -> Size:
        """Returns the size in pixels (frames, samples) that media are brought to when the settings say none."""
        raise NotImplementedError

    def size_of(self, medium: Any) -> Size:
        """Returns the size that a decoded medium is brought to: its bucket. Raises SampleError for none."""
        raise NotImplementedError

    def bucket_of(self, own: Size) -> Size:
        """Returns what `size_of` does of a medium of its `own` size: the same for all in families without buckets."""
        return self.default_size()

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Returns the shape of the latents of a medium of that size, without batch dimension."""
        raise NotImplementedError

    def fitted(self, medium: Any, size: Size) -> Tensor:
        """Returns a decoded medium brought to `size`, as the autoencoder takes it.

        An image `(3, height, width)` from -1 to 1, a video `(3, frames, height, width)`, audio `(channels, samples)`.
        Raises SampleError for one that cannot be.
        """
        raise NotImplementedError

    # With frozen networks

    @property
    def text_encoders(self) -> list[str]:
        """The components that read prompts and do nothing else."""
        return [name for name in self.configs if name.startswith('text_encoder')]

    def open(self, device: torch.device, dtype: torch.dtype = torch.float32, decodes_only: bool = False) -> Any:
        """Loads the pipeline without its denoiser: frozen, in evaluation mode. Raises ModelError where it cannot.

        With `decodes_only` it is without its text encoders too, which are most of its memory.
        """
        unopened = [*self.unopened, *(self.text_encoders if decodes_only else ())]
        return open_without(self.folder, self.index, self.configs, self.denoisers, unopened, device, dtype)

    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns what the denoiser is given of each prompt, tensors without batch dimension by name, on the CPU."""
        raise NotImplementedError

    def read(self, prompt: Prompt) -> Prompt:
        """Returns what the text encoders see of a prompt: its words."""
        return prompt.words

    def encode_read(self, pipeline: Any, prompts: Sequence[Prompt]) -> list[dict[str, Tensor]]:
        """Returns what `encode_text` does, of what `read` makes of prompts."""
        return self.encode_text(pipeline, [prompt.text for prompt in prompts])

    def encode_pictures(self, pipeline: Any, prompt: Prompt) -> dict[str, Tensor]:
        """Returns what the denoiser is given of the pictures of a prompt, as `encode_text` does of its words."""
        raise NotImplementedError

    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the latents `(batch, …)` of media that `fitted` made, scaled as the denoiser has them, float32."""
        raise NotImplementedError

    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns the media of latents `(batch, …)`: RGB PIL images, `Video`s or `Audio`s."""
        raise NotImplementedError

    # With the denoiser

    @property
    def sizes_at_once(self) -> str:
        """What to tell of micro-batches of samples of several sizes."""
        if self.one_size:
            return f'of one size each, as {self.model_type} needs them: {self.one_size}'
        return 'of several sizes, filled up to the longest; attention is computed for each length by itself'

    def stack(self, conditions: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Returns the conditions of several prompts as one batch by name; shorter ones are filled up with zeros."""
        return {
            name: nn.utils.rnn.pad_sequence([own[name] for own in conditions], batch_first=True)
            if conditions[0][name].ndim
            else torch.stack([own[name] for own in conditions])
            for name in conditions[0]
        }

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns what the denoiser predicts of samples `(batch, …)` at levels `(batch,)`, float32 of their shape.

        `sample` is in the denoiser's type, and so are conditions that are no integers. `guidance` is the embedded
        guidance, for the denoisers that take one; the others leave it. Signs, halves of channels and cut tokens are put
        right here, so that it is what `self.process` says.
        """
        raise NotImplementedError

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns what `predict` does of samples of several sizes, a batch each, in one call of the denoiser."""
        raise NotImplementedError

    def levels(self, steps: int, shape: Sequence[int]) -> Tensor:
        """Returns the levels of sampling latents of `shape` in so many steps, `(steps + 1,)` float32, the last clean.

        They are those of the pipeline's own scheduler. Clean is 0 of a flow and an angle, -1 of a DDPM.
        """
        origin, config = self.index['scheduler'], self.configs['scheduler']
        if isinstance(self.process, DDPM):
            return timestep_levels(origin, config, self.folder, steps)
        return flow_levels(origin, config, self.folder, steps, mu=self.mu(shape, steps), sigmas=self.sigmas(steps))

    def sigmas(self, steps: int) -> list[float] | None:
        """Returns the noise levels that the pipeline gives its scheduler to shift; None where it gives none."""
        return None

    def mu(self, shape: Sequence[int], steps: int | None = None) -> float | None:
        """Returns μ of a shift that hangs on the size of latents of `shape`; None where it does not.

        `steps` are those of sampling, None in training.
        """
        config = self.configs['scheduler']
        return dynamic_shift(config, self.tokens(shape)) if config.get('use_dynamic_shifting') else None

    def tokens(self, shape: Sequence[int]) -> int:
        """Returns how many tokens the denoiser makes of latents of `shape`."""
        return math.prod(shape[1:]) // self.side_multiple**2

    def shift(self, shape: Sequence[int]) -> float:
        """Returns by how much a flow's noise levels are shifted, for latents of `shape`: σ' = sσ / (1 + (s - 1)σ)."""
        return as_shift(self.configs['scheduler'], self.mu(shape))

    # Encoding of rows

    def encode(self, conversation: Conversation, train_on: TrainOn = 'all_assistant') -> Example:
        """Encodes a conversation of one prompt and one answer, which is a medium. Raises SampleError for another."""
        return self.encode_group([conversation], train_on)

    def encode_group(
        self,
        conversations: Sequence[Conversation],
        train_on: TrainOn = 'all_assistant',
        start: int | None = None,
        judged: bool = False,
    ) -> Example:
        """Encodes conversations of one prompt and an answer each, media decoded; all answers get the size of the first.

        Raises SampleError where they differ in their prompt, or are none of a prompt and a medium.
        """
        start = start if start is not None else first_differing_turn(conversations) if len(conversations) > 1 else 1
        shared = shared_turns(conversations) if len(conversations) > 1 else start
        if shared != 1 or start != 1:
            raise SampleError('the answers do not belong to one prompt: this model reads one user turn and answers it')
        media = [self.answer_of(conversation) for conversation in conversations]
        size = self.size_of(media[0])
        prompt = self.prompt_of(conversations[0][:1], size)
        return Example(self._prompt(prompt), [self._response(medium, size) for medium in media])

    def encode_prompt(self, messages: Conversation) -> Piece:
        """Encodes what generation starts from; its ids are the bytes of its text. Raises as `encode` does."""
        return self._prompt(self.prompt_of(messages))

    def blank(self) -> Example:
        """Returns what stands in for rows where a rank has none: a prompt of nothing, and latents that are zero.

        It is as large as the media that the settings ask for. Raises SampleError where the prompt was not encoded.
        """
        latents = torch.zeros(self.latent_shape(self.default_size()))
        response = Piece(torch.zeros(1, dtype=torch.long), torch.ones(1), media={LATENTS: latents})
        return Example(self._prompt(self.blank_prompt()), [response])

    def blank_prompt(self) -> Prompt:
        """Returns the empty prompt, its pictures black."""
        if not self.shown:
            return Prompt('')
        from PIL import Image

        height, width = size = self.default_size()
        return Prompt('', tuple(Image.new('RGB', (width, height)) for _ in self.shown), size)

    def prompt_of(self, messages: Conversation, size: Size | None = None) -> Prompt:
        """Returns the prompt of a conversation's first turn, its media decoded.

        Its pictures are brought to `size`, that of the answer; None is what is generated. Raises SampleError for
        another turn, and for media in it that are not those of `shown`.
        """
        if not messages or messages[0]['role'] != 'user' or any(turn['role'] != 'assistant' for turn in messages[1:]):
            raise SampleError('this model reads one user turn: take out system turns, and turns after the answer')
        parts = messages[0]['content']
        kinds = [part['type'] for part in parts if part['type'] != 'text']
        if not self.shown and kinds:
            raise SampleError(f"pipelines of class '{self.model_type}' read text alone")
        if kinds != ['image'] * len(self.shown):
            raise SampleError(
                f"pipelines of class '{self.model_type}' read a text and {' and '.join(self.shown)}, and of media the "
                f'user turn holds {", ".join(kinds) or "none"}'
            )
        text = ''.join(part['text'] for part in parts if part['type'] == 'text')
        pictures = tuple(part['image'] for part in parts if part['type'] == 'image')
        return Prompt(text, pictures, (size or self.default_size()) if pictures else ())

    def answer_of(self, conversation: Conversation) -> Any:
        """Returns the decoded medium that a conversation is answered with. Raises SampleError where it is not one."""
        self.prompt_of(conversation)
        parts = [part for turn in conversation[1:] for part in turn['content']]
        if len(conversation) != 2 or [part['type'] for part in parts] != [self.kind]:
            raise SampleError(f'the answer should be one {self.kind} and nothing else')
        return parts[0][self.kind]

    def decode(self, piece: Piece) -> list[dict[str, Any]]:
        """Returns a prompt as a text; responses are decoded by what generates them."""
        return [{'type': 'text', 'text': bytes(piece.ids.tolist()).decode()}]

    def prefill(self, conversation: Conversation) -> str:
        """Returns the text that a response begins with: none."""
        return ''

    def generation_prefix(self, conversation: Conversation) -> str:
        """Returns what a prompt ends with: nothing that belongs to a response."""
        return ''

    def _prompt(self, prompt: Prompt) -> Piece:
        media = {} if self.prepared is None else self.prepared.conditions(prompt, self.read(prompt))
        ids = torch.tensor(list(prompt.text.encode()), dtype=torch.long)
        return Piece(ids, torch.zeros(len(ids)), media=media)

    def _response(self, medium: Any, size: Size) -> Piece:
        if self.prepared is None:
            # Of the right shape before anything was encoded.
            self.fitted(medium, size)
            latents = torch.zeros(self.latent_shape(size))
        else:
            latents = self.prepared.latents(medium, size)
        weights = torch.full((self.draws,), 1 / self.draws)
        return Piece(torch.arange(self.draws), weights, media={LATENTS: latents}, media_counts={self.kind: 1})
