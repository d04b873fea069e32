"""Settings that only online algorithms have: how responses are drawn, and what rewards them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from align_anything.configs.schema import Cfgs


class OnlineModelCfgs(Cfgs):
    """How responses are drawn, and the models that reward them."""

    max_new_tokens: PositiveInt = Field(
        512, description='Tokens at which a response is cut. A prompt must leave room for them in model_max_length.'
    )
    temperature: PositiveFloat = Field(
        1.0, description='What logits are divided by when responses are drawn, and when they are trained on.'
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description='Share of the probability that the tokens to draw from hold, the likeliest first.'
    )
    top_k: int = Field(0, ge=0, description='Number of tokens to draw from, the likeliest first. 0 is all.')
    repetition_penalty: PositiveFloat = Field(
        1.0, description='What divides the logits of tokens that stand in the text already. 1 changes nothing.'
    )
    generation_batch_size: PositiveInt | None = Field(
        None, description='Responses that a device draws at once. null is all of the rollout.'
    )
    reward_model_name_or_path: str | None = Field(
        None, description='Reward model, as rm saves it. It may have another tokenizer and template.'
    )
    remote_rm_url: str | None = Field(
        None, description='Address of a service that rewards, such as http://localhost:6000/get_reward.'
    )
    remote_rm_timeout: PositiveFloat = Field(100.0, description='Seconds to wait for one answer of it.')
    remote_rm_retry_times: int = Field(3, ge=0, description='How often a request that failed is sent again.')
    remote_rm_batch_size: PositiveInt | None = Field(
        None, description='Responses in one request. null sends all that a device has drawn in one.'
    )
    remote_rm_send_media: bool = Field(
        False, description='Sends pictures, clips and sounds of the prompts along, as data URIs.'
    )


class CriticModelCfgs(OnlineModelCfgs):
    """The same, with a critic."""

    reward_critic_model_name_or_path: str | None = Field(
        None, description='What the critic starts from, such as the reward model; null is what the policy starts from.'
    )


class SafeModelCfgs(CriticModelCfgs):
    """The same, with what costs and its critic."""

    cost_model_name_or_path: str | None = Field(
        None, description='Cost model, as cost_model saves it: above 0 for harm. Required.'
    )
    cost_critic_model_name_or_path: str | None = Field(
        None, description='What the critic of costs starts from, such as the cost model; null is as for the other.'
    )


class VLLMCfgs(Cfgs):
    """Whether vLLM draws the responses, and how it runs: in the trainer's own processes, or on servers."""

    use_vllm: bool = Field(False, description='Draws responses with vLLM, and not with transformers.')
    vllm_num_engines: PositiveInt | None = Field(
        None,
        description='Copies of the model that draw. null is one for each device, or for each '
        'vllm_tensor_parallel_size of them, or for each server; another number is refused.',
    )
    vllm_server_urls: list[str] | None = Field(
        None,
        description='Addresses of servers that draw (python -m align_anything.rollouts.vllm_server), such as '
        'http://node1:8000. null draws in the processes that train, on their devices.',
    )
    vllm_server_timeout: PositiveFloat = Field(
        1800.0, description='Seconds after which a server that answers nothing is taken for dead.'
    )
    vllm_server_transfer: Literal['http', 'gloo', 'nccl'] = Field(
        'http',
        description='How weights go to the servers: over HTTP, or through a process group, nccl between GPUs. A group '
        'needs vLLM where training runs too.',
    )
    vllm_tensor_parallel_size: PositiveInt = Field(1, description='Devices that share one copy of the weights.')
    vllm_enable_prefix_caching: bool = Field(True, description='Computes what prompts have in common once.')
    vllm_enforce_eager: bool = Field(
        True, description='Runs without captured graphs: starts sooner, takes less memory, and draws more slowly.'
    )
    vllm_gpu_memory_utilization: float = Field(
        0.3,
        gt=0,
        le=1,
        description='Share of the memory of a device that vLLM takes, weights included. On a CPU, of the free memory, '
        'for keys and values.',
    )
    vllm_max_model_len: PositiveInt | None = Field(
        None, description='Tokens of the longest prompt with its response; null is model_max_length. It may be larger.'
    )
    vllm_enable_sleep: bool = Field(
        False, description='Gives the memory of a GPU back while the policy is trained. Leave the share to it then.'
    )
    vllm_async: bool = Field(
        False,
        description='Draws the next responses while those before are trained on, with weights that are one rollout '
        'older. It takes a rollout_correction_cap, which makes up for that.',
    )
    vllm_probe_tolerance: PositiveFloat | None = Field(
        None,
        description='The run stops when, after new weights, log-probabilities of vLLM differ from those of the trainer '
        'by more than this in the mean. null is 0.01 in float32 and 0.1 in half precision.',
    )


class RewardCfgs(Cfgs):
    """What rewards a response: the weighted sum of what a model, a service and functions say."""

    reward_model_weight: float = Field(1.0, description='Weight of the score of the reward model.')
    remote_rm_weight: float = Field(1.0, description='Weight of the rewards of the service.')
    reward_functions: list[str] = Field(
        [], description='Functions that reward responses: registered names, or file.py:name of your own.'
    )
    reward_weights: list[float] | None = Field(
        None, description='Weight of each of reward_functions. null weighs all with 1.'
    )
    reward_kwargs: dict[str, dict[str, Any]] = Field(
        {}, description='Arguments of reward functions, by the name of the function.'
    )


class OnlineLoggerCfgs(Cfgs):
    """What an online run writes beside the rest."""

    log_completions: PositiveInt | None = Field(
        None,
        description='Rollouts between two whose prompts, responses and rewards are written to completions.jsonl, and '
        'shown on completions.html, the console and the tracker. null shows none.',
    )


MORE_GROUPS: Mapping[str, type[Cfgs]] = MappingProxyType(
    {
        'model_cfgs': OnlineModelCfgs,
        'reward_cfgs': RewardCfgs,
        'logger_cfgs': OnlineLoggerCfgs,
        'vllm_cfgs': VLLMCfgs,
    }
)
"""What online algorithms add to the groups of settings."""
