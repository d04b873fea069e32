"""Models that reward functions ask: frozen, in float32, loaded once in a process however many functions name them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Audio, Media
from align_anything.datasets.media.audio import MIN_SECONDS, resampled, split_audio
from align_anything.rewards.published import clip_weights

PADDED_TO_THE_END = ('siglip', 'siglip2')
"""Types that read a text padded to their longest one, as they were trained."""


class Role(NamedTuple):
    """What a model is asked for.

    Attributes:
        what: the same in words.
        types: `model_type`s of its configuration.
        mapping: transformers' table of its classes, by configuration.
    """

    what: str
    types: tuple[str, ...]
    mapping: str = 'MODEL_MAPPING'


PICTURES_AND_TEXT = Role(
    'a model of images and text such as CLIP',
    ('align', 'altclip', 'chinese_clip', 'clip', 'metaclip_2', 'siglip', 'siglip2'),
)
CLIP = Role('a CLIP model', ('clip',))
SOUNDS_AND_TEXT = Role('a model of audio and text', ('clap',))
LISTENERS = (
    Role('a model that writes down speech', ('whisper',), 'MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING'),
    Role(
        'a model that writes down speech',
        (
            *('data2vec-audio', 'hubert', 'sew', 'sew-d', 'unispeech', 'unispeech-sat', 'wav2vec2', 'wav2vec2-bert'),
            *('wav2vec2-conformer', 'wavlm'),
        ),
        'MODEL_FOR_CTC_MAPPING',
    ),
)


def checkpoint_for(*roles: Role) -> AfterValidator:
    """Returns the check of an option that names a checkpoint: its configuration is read, and is of one of the roles."""

    def check(name: str) -> str:
        try:
            role_of(name, roles)
        except ModelError as error:
            raise ValueError(str(error)) from error
        return name

    return AfterValidator(check)


def _device(name: str | None) -> str | None:
    try:
        torch.device(name or 'cpu')
    except RuntimeError as error:
        raise ValueError(f'there is no device of that name: {error}') from error
    return name


Device = Annotated[str | None, AfterValidator(_device)]
"""Where a model runs, such as `cpu`; None is the device of this rank."""


def role_of(name: str, roles: Sequence[Role]) -> Role:
    """Returns the role that a checkpoint can play. Raises ModelError when it is none of them."""
    from align_anything.models.checkpoint import read_config

    model_type = read_config(name).model_type
    for role in roles:
        if model_type in role.types:
            return role
    known = ', '.join(sorted(kind for role in roles for kind in role.types))
    raise ModelError(f"{name} is of model_type '{model_type}', but should be {roles[0].what}: one of {known}.")


class Frozen(NamedTuple):
    """A model with what makes its inputs."""

    model: Any
    processor: Any

    @property
    def rate(self) -> int:
        """Samples per second that it hears."""
        from align_anything.models.structure import audio_rate

        return audio_rate(self.processor)


def frozen(
    name: str, role: Role, device: str | None = None, *, processor: str | None = None, weights: str | None = None
) -> Frozen:
    """Returns the model of a checkpoint, loaded once.

    Args:
        name: the checkpoint.
        role: what it is asked for.
        device: where it runs; None is the device of this rank.
        processor: the checkpoint whose tokenizer and processor it reads with; None is its own.
        weights: file with the weights of CLIP in the names of open_clip; None are those of the checkpoint.

    Raises:
        ModelError: something does not load, or the weights are not those of such a model.
    """
    return _frozen(name, role, device_of(device), processor or name, weights)


def device_of(name: str | None) -> str:
    """Returns the device of that name, of None the one of this rank."""
    return name or ('cuda' if torch.cuda.is_available() else 'cpu')


@functools.cache
def _frozen(name: str, role: Role, device: str, processor: str, weights: str | None) -> Frozen:
    from transformers.models.auto import modeling_auto

    from align_anything.models.checkpoint import read_config
    from align_anything.models.complete import load_complete, load_processor

    reads, config = load_processor(processor), read_config(name)
    kind = vars(modeling_auto)[role.mapping][type(config)]
    if weights is None:
        model = load_complete(kind, name, torch.float32)
    else:
        model = load_complete(kind, weights, torch.float32, config=config, weights=clip_weights(weights))
    return Frozen(model.to(device).eval().requires_grad_(False), reads)


def texts_embedded(judge: Frozen, texts: Sequence[str], batch_size: int) -> Tensor:
    """Returns texts as vectors of length 1, `(texts, width)` on the CPU; cut to what the model reads."""
    config = judge.model.config
    longest = min(judge.processor.tokenizer.model_max_length, config.text_config.max_position_embeddings)
    how: dict[str, Any] = {'truncation': True, 'max_length': longest, 'return_tensors': 'pt'}
    how['padding'] = 'max_length' if config.model_type in PADDED_TO_THE_END else True
    distinct = list(dict.fromkeys(texts))
    rows = []
    for start in range(0, len(distinct), batch_size):
        inputs = judge.processor(text=distinct[start : start + batch_size], **how)
        rows.append(_unit(judge, judge.model.get_text_features, inputs))
    return torch.cat(rows)[[distinct.index(text) for text in texts]]


def pictures_embedded(
    judge: Frozen, pictures: Sequence[Any], batch_size: int, pixels: Callable[[Any], Tensor] | None = None
) -> Tensor:
    """Returns PIL images as vectors of length 1, `(images, width)` on the CPU.

    `pixels` makes `(3, side, side)` of each image; by default the processor does.
    """
    from transformers import BatchFeature

    rows = []
    for start in range(0, len(pictures), batch_size):
        some = list(pictures[start : start + batch_size])
        if pixels is None:
            inputs = judge.processor(images=some, return_tensors='pt')
        else:
            inputs = BatchFeature({'pixel_values': torch.stack([pixels(picture) for picture in some])})
        rows.append(_unit(judge, judge.model.get_image_features, inputs))
    return torch.cat(rows)


def sounds_embedded(judge: Frozen, sounds: Sequence[Audio], batch_size: int) -> Tensor:
    """Returns audio clips as vectors of length 1, `(clips, width)` on the CPU.

    Of a clip longer than the model hears at once it is the mean of its stretches.
    """
    stretches = [heard(judge, sound) for sound in sounds]
    flat = [samples for own in stretches for samples in own]
    rows = []
    for start in range(0, len(flat), batch_size):
        inputs = judge.processor(audio=flat[start : start + batch_size], sampling_rate=judge.rate, return_tensors='pt')
        # Of a batch of short clips the processor declares one to be long, at random.
        inputs['is_longer'] = torch.zeros_like(torch.as_tensor(inputs['is_longer']))
        rows.append(_unit(judge, judge.model.get_audio_features, inputs))
    parts = torch.cat(rows).split([len(own) for own in stretches])
    return nn.functional.normalize(torch.stack([own.mean(0) for own in parts]), dim=-1)


def heard(judge: Frozen, sound: Audio) -> list[Any]:
    """Returns the samples of an audio clip at the rate of the model, in stretches that it hears at once.

    A clip too short to be heard is followed by silence.
    """
    import numpy as np

    from align_anything.models.structure import audio_window

    # A policy may as well end a clip before it begins.
    clip = resampled(sound, judge.rate) if len(sound.samples) else Audio(sound.samples, judge.rate)
    missing = int(MIN_SECONDS * clip.rate) - len(clip.samples)
    if missing > 0:
        clip = Audio(np.pad(clip.samples, (0, missing)), clip.rate)
    window = audio_window(judge.processor)
    options = {} if window is None else {'max_seconds': window / clip.rate, 'long_audio': 'split'}
    return [piece.samples for piece in split_audio(clip, Media('audio', clip, options))]


def _unit(judge: Frozen, features: Any, inputs: Any) -> Tensor:
    with torch.inference_mode():
        found = features(**inputs.to(judge.model.device)).pooler_output
    return nn.functional.normalize(found.float().cpu(), dim=-1)
