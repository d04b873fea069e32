"""Settings of the server and of the conversation in the terminal: those of generation, and their own."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from align_anything.algorithms.generate import JUDGING, OBEYED, Generating, obeyed
from align_anything.configs.effects import Effects, excludes, needs, never

MODEL_OF_JUDGE = {'model_cfgs': tuple(key for key in JUDGING['model_cfgs'] if key.startswith('reward_model_'))}
SERVED_BY_VLLM = ('host', 'port', 'api_key_file', 'served_model_name')
BY_ITSELF = excludes(
    'vllm_cfgs.use_vllm', True, why='the server of vLLM has its own; leave it out, or pass it through vllm_args.'
)


class Serve(Generating):
    """Answers requests over HTTP."""

    name: ClassVar[str] = 'serve'
    may_only_judge: ClassVar[bool] = True

    host: str = Field('127.0.0.1', description='Address to listen at; 0.0.0.0 lets other machines in.')
    port: int = Field(8000, ge=1, le=65535, description='Port to listen at.')
    api_key_file: str | None = Field(
        None,
        description='File of API keys, one a line, of which requests must bring one; so must they one in the '
        'environment variable ALIGN_ANYTHING_API_KEY. Without any, everyone who reaches the server is answered.',
    )
    served_model_name: str | None = Field(
        None, description='What requests call the model; null is the last part of its path.'
    )
    queue_size: NonNegativeInt = Field(
        256, description='Prompts that wait while others are answered; more are told to come again (503).'
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
            'nothing is trained or read from data here; remove it.',
            spares=obeyed(
                OBEYED,
                MODEL_OF_JUDGE,
                {
                    'train_cfgs': (
                        *('per_device_eval_batch_size', 'host', 'port', 'api_key_file', 'served_model_name'),
                        *('queue_size', 'request_timeout', 'max_body_mib', 'max_media', 'max_image_pixels'),
                        'vllm_args',
                    )
                },
            ),
        ),
        'train_cfgs.vllm_args': needs('vllm_cfgs.use_vllm', True),
        'train_cfgs.per_device_eval_batch_size': needs('model_cfgs.reward_model_name_or_path'),
        **{
            f'train_cfgs.{key}': BY_ITSELF
            for key in ('queue_size', 'request_timeout', 'max_body_mib', 'max_media', 'max_image_pixels')
        },
        'model_cfgs.reward_model_name_or_path': BY_ITSELF,
    }
