"""What may be asked of the server: bodies of requests, checked. What would be without effect is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    model_validator,
)

from align_anything.serve.errors import RequestError, invalid

MOST_RESPONSES, MOST_STOPS, MOST_JUDGED = 128, 16, 1024
LARGEST_SEED = 2**63 - 1
B = TypeVar('B', bound='Body')


class Strict(BaseModel):
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra='forbid')


class Body(Strict):
    """The body of a request.

    `neutral` are parameters of OpenAI that nothing here obeys, with the values that ask for nothing; `notes` are those
    that say nothing about the answer.
    """

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    notes: ClassVar[tuple[str, ...]] = ('user', 'metadata', 'store', 'service_tier', 'safety_identifier')

    @model_validator(mode='before')
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given

        def asks(name: str, value: Any) -> bool:
            return name not in cls.notes and not (name in cls.neutral and (value is None or value in cls.neutral[name]))

        return {name: value for name, value in given.items() if asks(name, value)}


def read_body(kind: type[B], body: bytes) -> B:
    """Returns the body of a request. Raises RequestError for anything that is not of that kind."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f'the body is no JSON: {error}.') from error
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from error


class Text(Strict):
    type: Literal['text']
    text: str


class ImageUrl(Strict):
    url: str
    detail: Literal['auto', 'low', 'high'] | None = None


class Image(Strict):
    type: Literal['image_url']
    image_url: ImageUrl | str


class InputAudio(Strict):
    data: str
    format: Literal['wav', 'mp3', 'flac', 'ogg', 'opus', 'aac', 'm4a']


class Sound(Strict):
    type: Literal['input_audio']
    input_audio: InputAudio


class Url(Strict):
    url: str


class SoundByUrl(Strict):
    type: Literal['audio_url']
    audio_url: Url | str


class Clip(Strict):
    type: Literal['video_url']
    video_url: Url | str


def _type_of(part: Any) -> str | None:
    return part.get('type') if isinstance(part, dict) else getattr(part, 'type', None)


Part = Annotated[
    Annotated[Text, Tag('text')]
    | Annotated[Image, Tag('image_url')]
    | Annotated[Sound, Tag('input_audio')]
    | Annotated[SoundByUrl, Tag('audio_url')]
    | Annotated[Clip, Tag('video_url')],
    Discriminator(_type_of),
]


class Turn(Strict):
    """A message of a conversation."""

    role: Literal['system', 'developer', 'user', 'assistant', 'tool']
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    actions: list[JsonValue] | None = Field(None, min_length=1)
    state: JsonValue = None

    @model_validator(mode='after')
    def _acts_in_answers(self) -> Turn:
        if self.actions is not None and self.role != 'assistant':
            raise ValueError(f'a turn of {self.role} has actions, and only assistant turns act')
        return self


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Sampled(Body):
    """How responses are sampled, None for what the server says."""

    n: int = Field(1, ge=1, le=MOST_RESPONSES)
    seed: int | None = Field(None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    steps: int | None = Field(None, ge=1, le=1000, validation_alias=AliasChoices('steps', 'num_inference_steps'))
    guidance_scale: float | None = Field(None, ge=0, le=100)


def _stops(value: list[str]) -> list[str]:
    if any(not text for text in value):
        raise ValueError('a stop string is empty')
    return value


class ChatBody(Sampled):
    """`POST /v1/chat/completions`."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        'frequency_penalty': (0,),
        'presence_penalty': (0,),
        'logprobs': (False,),
        'top_logprobs': (0,),
        'logit_bias': ({},),
        'parallel_tool_calls': (True,),
        'response_format': ({'type': 'text'},),
        'prediction': (),
        'reasoning_effort': (),
        'verbosity': (),
        'audio': (),
        'web_search_options': (),
        'functions': ([],),
        'function_call': ('auto', 'none'),
    }

    model: str
    messages: list[Turn] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Annotated[list[str], AfterValidator(_stops), Field(max_length=MOST_STOPS)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[dict[str, JsonValue]] | None = None
    tool_choice: Literal['auto', 'none'] | None = None
    modalities: list[Literal['text', 'image', 'audio', 'video']] | None = None

    @model_validator(mode='before')
    @classmethod
    def _as_lists(cls, given: Any) -> Any:
        if isinstance(given, dict) and (given.get('stop') is None or isinstance(given['stop'], str)):
            stop = given.get('stop')
            return {**given, 'stop': [] if stop is None else [stop], 'n': 1 if given.get('n') is None else given['n']}
        return given

    @model_validator(mode='after')
    def _agrees(self) -> ChatBody:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError('max_tokens and max_completion_tokens say two things')
        if self.stream_options is not None and not self.stream:
            raise ValueError('stream_options are for stream: true')
        if self.tool_choice is not None and not self.tools:
            raise ValueError('tool_choice is given, but there are no tools')
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """Most tokens of a response, by either name."""
        return self.max_completion_tokens or self.max_tokens


class ImagesBody(Sampled):
    """`POST /v1/images/generations`."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        'response_format': ('b64_json',),
        'output_format': ('png',),
        'quality': ('auto',),
        'size': ('auto',),
        'background': ('auto', 'opaque'),
        'moderation': ('auto', 'low'),
        'stream': (False,),
        'partial_images': (0,),
        'style': (),
        'output_compression': (100,),
    }

    model: str | None = None
    prompt: str = Field(min_length=1)


class SpeechBody(Sampled):
    """`POST /v1/audio/speech`."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        'speed': (1,),
        'instructions': ('',),
        'stream_format': ('audio',),
        'voice': ('default',),
        'n': (1,),
    }

    model: str | None = None
    input: str = Field(min_length=1)
    response_format: Literal['mp3', 'wav', 'flac', 'opus', 'pcm'] = 'mp3'


class RewardsBody(Body):
    """`POST /v1/rewards`: conversations that end with the answer to be judged."""

    model: str | None = None
    conversations: list[Annotated[list[Turn], Field(min_length=2)]] = Field(min_length=1, max_length=MOST_JUDGED)

    @model_validator(mode='before')
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get('messages'), list):
            return given
        if 'conversations' in given:
            raise ValueError('give messages, the one conversation, or conversations, not both')
        return {
            **{key: value for key, value in given.items() if key != 'messages'},
            'conversations': [given['messages']],
        }

    @model_validator(mode='after')
    def _ends_with_an_answer(self) -> RewardsBody:
        for number, turns in enumerate(self.conversations):
            if turns[-1].role != 'assistant':
                raise ValueError(f'conversations.{number} ends with no assistant turn, so there is nothing to judge')
        return self


class OmegaBody(Strict):
    """`POST /api/v1/v2t` and `/api/v1/v2v`: samples as the base64 text of a file of `numpy.save`."""

    audio_data: str = Field(min_length=1)
    sample_rate: int = Field(ge=1000, le=768_000)
