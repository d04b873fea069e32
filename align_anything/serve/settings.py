"""Settings of the server and of the conversation in the terminal: those of generation, and their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from align_anything.algorithms.generate import JUDGING, OBEYED, Generating, obeyed
from align_anything.configs.effects import Effects, excludes, needs, never
from align_anything.core.types import ACTION, MEDIA_KINDS
from align_anything.trainers.pairs import find_pair

DECODING = (
    *('allow_urls', 'audio_in_video', 'num_frames', 'fps', 'min_frames', 'max_frames', 'max_frame_pixels'),
    *('max_video_pixels', 'max_audio_seconds'),
)
GENERATION = {**OBEYED, 'data_cfgs': DECODING, 'logger_cfgs': ('cache_dir',), 'vllm_cfgs': ()}
"""The settings of generation that mean something where prompts come one by one, and are in no rows."""
OF_VLLM = ('tensor_parallel_size', 'enable_prefix_caching', 'enforce_eager', 'gpu_memory_utilization', 'max_model_len')
OF_JUDGE = tuple(
    key for key in JUDGING['model_cfgs'] if key.startswith('reward_model_') and key != 'reward_model_unread_score'
)
OF_SERVER = ('queue_size', 'request_timeout', 'max_body_mib', 'max_media', 'max_image_pixels')
ANY = replace(find_pair('any_to_any'), writes=frozenset({*MEDIA_KINDS, ACTION}))
"""Whatever a checkpoint reads and writes, actions among it."""
NOTHING_TRAINED = 'nothing is trained or read from data here; remove it.'
BY_ITSELF = excludes('vllm_cfgs.use_vllm', True, why='the server of vLLM does not know it; leave one of them out.')


class Serve(Generating):
    """Answers requests over HTTP."""

    name: ClassVar[str] = 'serve'
    requires_model: ClassVar[bool] = False

    host: str = Field('127.0.0.1', description='Address to listen at; 0.0.0.0 lets other machines in.')
    port: int = Field(8000, ge=1, le=65535, description='Port to listen at.')
    api_key_file: str | None = Field(
        None,
        description='File of API keys, one a line, of which requests must bring one, as they must where the '
        'environment variable ALIGN_ANYTHING_API_KEY has one. Without any, whoever reaches the server is answered.',
    )
    served_model_name: str | None = Field(
        None, description='What requests call the model; null is the last part of its path.'
    )
    queue_size: NonNegativeInt = Field(
        256, description='Prompts that wait while others are answered; whoever brings more is told to come again (503).'
    )
    request_timeout: PositiveFloat = Field(600.0, description='Seconds in which a request must be answered.')
    max_body_mib: PositiveInt = Field(64, description='MiB of the largest request.')
    max_media: NonNegativeInt = Field(16, description='Images, sounds and clips in one request.')
    max_image_pixels: PositiveInt = Field(2**25, description='Pixels of the largest image in a request.')
    vllm_args: str | None = Field(
        None, description='Further arguments for the server of vLLM, as its command line takes them.'
    )

    takes_effect: ClassVar[Effects] = {
        '*.*': never(
            NOTHING_TRAINED,
            spares=obeyed(
                GENERATION,
                {
                    'train_cfgs': (
                        *('host', 'port', 'api_key_file', 'served_model_name', *OF_SERVER),
                        *('ds_cfgs', 'per_device_eval_batch_size', 'vllm_args'),
                    ),
                    'model_cfgs': OF_JUDGE,
                    'vllm_cfgs': tuple(f'vllm_{key}' for key in OF_VLLM),
                },
            ),
        ),
        'train_cfgs.ds_cfgs': needs('model_cfgs.reward_model_name_or_path'),
        'train_cfgs.per_device_eval_batch_size': needs('model_cfgs.reward_model_name_or_path'),
        'train_cfgs.vllm_args': needs('vllm_cfgs.use_vllm', True),
        **{f'train_cfgs.{key}': BY_ITSELF for key in OF_SERVER},
        'model_cfgs.reward_model_name_or_path': BY_ITSELF,
    }


class Chat(Generating):
    """Talks with a person in the terminal."""

    name: ClassVar[str] = 'chat'
    requires_model: ClassVar[bool] = False
    other_names = {'compare': 'compare_model_name_or_path'}

    compare_model_name_or_path: str | None = Field(
        None, description='A second checkpoint, whose answers are shown beside those of the first. Also --compare.'
    )
    url: str | None = Field(
        None,
        description='Address of a server of the form of OpenAI to talk with in place of a checkpoint, such as '
        'http://127.0.0.1:8000/v1.',
    )
    served_model_name: str | None = Field(
        None, description='What that server calls the model; null is the first one that it lists.'
    )
    api_key_file: str | None = Field(
        None,
        description='File with the API key for that server; else the environment variable ALIGN_ANYTHING_API_KEY has '
        'it, where it needs one.',
    )
    system: str | None = Field(None, description='System prompt to begin with.')
    media_folder: str = Field('chat_media', description='Folder for the media in answers; made when there are some.')

    takes_effect: ClassVar[Effects] = {
        '*.*': never(
            NOTHING_TRAINED,
            spares=obeyed(
                GENERATION,
                {
                    'train_cfgs': (
                        *('compare_model_name_or_path', 'url', 'served_model_name', 'api_key_file', 'system'),
                        'media_folder',
                    ),
                    'vllm_cfgs': tuple(f'vllm_{key}' for key in OF_VLLM),
                },
            ),
        ),
        'train_cfgs.served_model_name': needs('train_cfgs.url'),
        'train_cfgs.api_key_file': needs('train_cfgs.url'),
        'train_cfgs.compare_model_name_or_path': excludes('train_cfgs.url'),
        'model_cfgs.model_name_or_path': excludes('train_cfgs.url'),
    }


def name_of(source: str) -> str:
    """Returns what a checkpoint goes by: the last part of its path that says something."""
    parts = [part for part in Path(source).absolute().parts if not part.startswith('slice_')]
    return parts[-1] if Path(source).exists() else source
