"""What a composed model is made of: `align-anything compose`, and `model_cfgs.compose` of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from align_anything.core.errors import SettingsError
from align_anything.core.registry import nearest

Projector = Literal['linear', 'mlp', 'transformer', 'expand']
MAX_ENCODERS = 2
BY_FRAME = 'frames'
"""The encoder of videos that is the encoder of images, frame by frame."""
READ_BY: Mapping[str, tuple[Projector, ...]] = {
    'num_tokens': ('transformer', 'expand'),
    'num_layers': ('mlp', 'transformer'),
    'num_heads': ('transformer',),
    'hidden_size': ('mlp', 'transformer'),
    'dropout': ('mlp', 'transformer'),
    'stack': ('linear', 'mlp'),
}
"""The settings of a projector, and the types that read them."""
DEFAULT_TOKENS = {'transformer': 64, 'expand': 2}


class MediaCfgs(BaseModel):
    """How media of one kind get into the language model."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    encoder: str | list[str] | None = Field(
        None,
        description='Checkpoint of the encoder, a folder or a hub name; a list of two whose features stand side by '
        'side. Videos: also `frames`, the encoder of images for each frame.',
    )
    feature_layer: int | None = Field(
        None,
        description='Layer whose output is taken, without the norm behind the last one: 1 is the first, -1 the last. '
        'Layers behind it are left out. null is the output of the encoder; by default -2 for clip and siglip.',
    )
    select: Literal['patch', 'full', 'cls', 'pooled'] | None = Field(
        None,
        description='What is taken of the features: those of patches (or all of audio), all, the first, or their '
        'mean. By default `patch`, and for videos that go frame by frame `pooled`.',
    )
    precomputed_dim: PositiveInt | None = Field(
        None, description='Size of the vectors that the data bring, instead of an encoder.'
    )
    projector: Projector | None = Field(None, description='Its type; null is the one of all kinds.')
    num_tokens: PositiveInt | None = Field(
        None, description='Tokens of a medium, with transformer (by default 64) and expand (2).'
    )
    num_layers: PositiveInt = Field(2, description='Linear layers of mlp, attention layers of transformer.')
    num_heads: PositiveInt = Field(8, description='Attention heads of transformer.')
    hidden_size: PositiveInt | None = Field(None, description='Width between the layers.')
    dropout: float = Field(0.0, ge=0, lt=1, description='Dropout between the layers.')
    stack: PositiveInt | None = Field(
        None,
        description='Neighbouring features that make one token, with linear and mlp. By default 4 for encoders of '
        'audio that make 50 a second, else 1.',
    )
    start_token: str | None = Field(None, description='Token in front of a medium, such as `<img>`.')
    end_token: str | None = Field(None, description='Token behind a medium, such as `</img>`.')

    @model_validator(mode='before')
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, (str, list)):
            return {'encoder': value}
        if isinstance(value, Mapping) and 'perception_tokens' in value:
            if 'num_tokens' in value:
                raise ValueError('num_tokens and perception_tokens are the same; leave one of them out')
            return {'num_tokens' if key == 'perception_tokens' else key: own for key, own in value.items()}
        return value

    @property
    def encoders(self) -> list[str]:
        """The checkpoints of the encoders."""
        return [self.encoder] if isinstance(self.encoder, str) else list(self.encoder or [])


class ComposeCfgs(BaseModel):
    """A language model, and what it gets for each kind of media."""

    model_config = ConfigDict(frozen=True, extra='forbid')

    language_model: str = Field(description='Checkpoint of the language model: a folder or a hub name.')
    image: MediaCfgs | None = Field(None, description='What reads images: a checkpoint, or a mapping.')
    video: MediaCfgs | None = Field(None, description='What reads videos: a checkpoint, `frames`, or a mapping.')
    audio: MediaCfgs | None = Field(None, description='What reads audio: a checkpoint, or a mapping.')
    projector: Projector = Field('mlp', description='Type of the projectors of all kinds.')
    seed: int = Field(42, ge=0, description='Seed of the first weights of the projectors.')

    @model_validator(mode='after')
    def _whole(self) -> Self:
        problems = list(_problems(self))
        if problems:
            raise ValueError('\n'.join(problems))
        return self

    @property
    def media(self) -> dict[str, MediaCfgs]:
        """What each kind of media that is read gets."""
        named = {'image': self.image, 'video': self.video, 'audio': self.audio}
        return {kind: part for kind, part in named.items() if part is not None}


def read_compose(values: Mapping[str, Any], origin: str) -> ComposeCfgs:
    """Returns what `values` say. Raises SettingsError with all that is wrong; messages begin with `origin`."""
    try:
        return ComposeCfgs.model_validate(values)
    except ValidationError as error:
        raise SettingsError([said for item in error.errors() for said in _said(item, origin)]) from error


def _said(item: Mapping[str, Any], origin: str) -> Iterator[str]:
    path = [str(part) for part in item['loc'] if part not in ('str', 'list[str]')]
    where = '.'.join([origin, *path])
    if item['type'] == 'extra_forbidden':
        known = list((MediaCfgs if len(path) > 1 else ComposeCfgs).model_fields)
        yield f'{where}: there is no such setting.{nearest(path[-1], known)} There are: {", ".join(known)}.'
    elif item['type'] == 'missing':
        yield f'{where} is required.'
    else:
        for line in item['msg'].removeprefix('Value error, ').splitlines():
            yield f'{where}: {line}.' if len(path) or item['type'] != 'value_error' else f'{origin}.{line}.'


def _problems(cfgs: ComposeCfgs) -> Iterator[str]:
    if not cfgs.media:
        yield 'image: nothing is composed; name an encoder of images, videos or audio'
    for kind, part in cfgs.media.items():
        given, projector = part.model_fields_set, part.projector or cfgs.projector
        if part.precomputed_dim is None and not part.encoders:
            yield f'{kind}: name its encoder, or the size of precomputed vectors (precomputed_dim)'
        if part.precomputed_dim is not None:
            for key in ('encoder', 'feature_layer', 'select', 'stack'):
                if key in given:
                    yield f'{kind}.{key}: it means nothing with precomputed_dim; leave one of them out'
            if projector == 'transformer':
                yield f'{kind}.projector: transformer reads several features, and precomputed_dim is one; take expand'
        if len(part.encoders) > MAX_ENCODERS:
            yield f'{kind}.encoder: {len(part.encoders)} encoders, and at most {MAX_ENCODERS} can stand side by side'
        if BY_FRAME in part.encoders and kind != 'video':
            yield f'{kind}.encoder: only videos have frames'
        if part.encoders == [BY_FRAME] and (cfgs.image is None or not cfgs.image.encoders):
            yield 'video.encoder: frames go through the encoder of images, and there is none; name one'
        if part.encoders == [BY_FRAME] and 'feature_layer' in given:
            yield 'video.feature_layer: frames have that of images; leave it out'
        for key, types in READ_BY.items():
            if key in given and projector not in types:
                yield f'{kind}.{key}: the projector {projector} has none ({" and ".join(types)} have); leave it out'
