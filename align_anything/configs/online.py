"""Settings that only online algorithms have: how responses are sampled, and what rewards them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from align_anything.configs.effects import EVALUATES, Effect, Effects, Facts, excludes, needs, writing
from align_anything.configs.environment import EnvironmentCfgs
from align_anything.configs.ptx import PtxDataCfgs
from align_anything.configs.schema import Cfgs, LoggerCfgs, LoraCfgs, ModelCfgs, RunCfgs
from align_anything.core.types import ACTION, MEDIA_KINDS, MediaKind

BY_TRANSFORMERS = excludes(
    'vllm_cfgs.use_vllm',
    why='vLLM samples from the model as it is. Generate with transformers, or set it to 1.',
    off=(None, 1.0),
)
MODEL, COST = 'model', 'cost'
"""What metrics call the score of a reward model and that of a cost model."""


class JudgeCfgs(NamedTuple):
    """What the settings say of a model that scores responses.

    Attributes:
        role: what the names of its settings begin with.
        source: checkpoint; None where there is no such model.
        max_length: longest conversation in its own tokens; None is what the checkpoint says.
        unread_score: score of a response that it cannot read.
    """

    role: str
    source: str | None
    max_length: int | None
    unread_score: float


class OnlineModelCfgs(ModelCfgs):
    """Which checkpoint is trained, how it is loaded, how it samples, and the models that reward what it says."""

    takes_effect: ClassVar[Effects] = {
        'generation_batch_size': needs('vllm_cfgs.use_vllm', False),
        'include_stop_str_in_output': needs('model_cfgs.stop'),
        **{
            f'reward_model_{key}': needs('model_cfgs.reward_model_name_or_path')
            for key in ('max_length', 'unread_score')
        },
        **{
            f'remote_rm_{key}': needs('model_cfgs.remote_rm_url')
            for key in ('timeout', 'retry_times', 'batch_size', 'send_media')
        },
        'emit_size': writing(*MEDIA_KINDS),
        **{f'emit_{key}': writing(*MEDIA_KINDS, ACTION) for key in ('temperature', 'top_k')},
        'guidance_scale': (writing(*MEDIA_KINDS, off=(1.0,)), BY_TRANSFORMERS),
        'eval_temperature': EVALUATES,
        'eval_guidance_scale': (writing(*MEDIA_KINDS), EVALUATES, BY_TRANSFORMERS),
    }

    max_new_tokens: PositiveInt = Field(
        512,
        description='Maximum tokens of a response; it is clipped there. model_max_length must hold the prompt '
        'and these.',
    )
    temperature: PositiveFloat = Field(
        1.0,
        description='Sampling temperature. It also divides the logits that log-probabilities in training come from.',
    )
    eval_temperature: NonNegativeFloat | None = Field(
        None,
        description='Temperature of the text of responses to evaluation data; 0 decodes greedily. null is temperature.',
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description='Nucleus sampling: only the most probable tokens that together hold this probability are sampled '
        'from. 1 is all.',
    )
    top_k: int = Field(
        0, ge=0, description='Top-k sampling: only so many of the most probable tokens are sampled from. 0 is all.'
    )
    repetition_penalty: PositiveFloat = Field(
        1.0, description='Repetition penalty on tokens that the prompt or the response already has. 1 is none.'
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description='Stop strings: a response ends with the token that completes one of them.'
    )
    include_stop_str_in_output: bool = Field(
        True,
        description='Keeps the stop string in the text that rewards read and reports show. False cuts it off there; '
        'its tokens were sampled, and are trained, either way.',
    )
    emit_size: dict[MediaKind, list[PositiveInt] | PositiveInt] = Field(
        {},
        description='Grid of generated media in codes, by kind, such as `{image: [16, 16], audio: 50}`. What is not '
        'named has the size that the checkpoint declares; audio without one gets as long as the model makes it.',
    )
    emit_temperature: dict[MediaKind, PositiveFloat] = Field(
        {},
        description='Sampling temperature of the codes of media, by kind, in rollouts and in training; that of text is '
        'temperature, and so is that of a kind that is not named.',
    )
    emit_top_k: dict[MediaKind, NonNegativeInt] = Field(
        {}, description='Top-k sampling of the codes of media, by kind. 0, and a kind that is not named, is all.'
    )
    guidance_scale: PositiveFloat = Field(
        1.0,
        description='Classifier-free guidance of the codes of media, in rollouts and in the log-probabilities of '
        'training alike: 1 is none, above 1 heeds the prompt more. Each response is computed twice then, the second '
        'time behind the prompt without its text.',
    )
    eval_guidance_scale: PositiveFloat | None = Field(
        None, description='Guidance of the responses to evaluation data. null is guidance_scale.'
    )
    generation_batch_size: PositiveInt | None = Field(
        None, description='Responses that a device generates at once. null is all of the rollout.'
    )
    reward_model_name_or_path: str | None = Field(
        None, description='Reward model, as rm saves it. It may have another tokenizer and template.'
    )
    reward_model_max_length: PositiveInt | None = Field(
        None,
        description='Longest conversation that the reward model reads, in tokens of its own. null is what its '
        'checkpoint says: positions of the model, model_max_length of its tokenizer.',
    )
    reward_model_unread_score: float = Field(
        0.0,
        allow_inf_nan=False,
        description='Score of a response that the reward model cannot read: longer than it reads, or refused by its '
        'template. Each is listed in unread_responses.jsonl and counted.',
    )
    remote_rm_url: str | None = Field(
        None, description='Address of a service that rewards, such as http://localhost:6000/get_reward.'
    )
    remote_rm_timeout: PositiveFloat = Field(100.0, description='Seconds to wait for one answer of it.')
    remote_rm_retry_times: int = Field(3, ge=0, description='How often a request that failed is sent again.')
    remote_rm_batch_size: PositiveInt | None = Field(
        None, description='Responses in one request. null sends all that a device has generated in one.'
    )
    remote_rm_send_media: bool = Field(
        False, description='Sends images, videos and audio of prompts and responses along, as data URIs.'
    )

    @property
    def judges(self) -> dict[str, JudgeCfgs]:
        """The models that may score responses, by what metrics call them."""
        return {
            MODEL: JudgeCfgs(
                'reward_model',
                self.reward_model_name_or_path,
                self.reward_model_max_length,
                self.reward_model_unread_score,
            )
        }

    @property
    def critics(self) -> dict[str, str | None]:
        """What each critic starts from, by its role; None is what the policy starts from."""
        return {}


class CriticModelCfgs(OnlineModelCfgs):
    """The same, with a critic."""

    reward_critic_model_name_or_path: str | None = Field(
        None, description='What the critic starts from, such as the reward model; null is what the policy starts from.'
    )

    @property
    def critics(self) -> dict[str, str | None]:
        return {'reward_critic': self.reward_critic_model_name_or_path}


class SafeModelCfgs(CriticModelCfgs):
    """The same, with what costs and its critic."""

    cost_model_name_or_path: str | None = Field(
        None, description='Cost model, as cost_model saves it: above 0 for harm. Required.'
    )
    cost_model_max_length: PositiveInt | None = Field(
        None, description='As reward_model_max_length, for the cost model.'
    )
    cost_model_unread_score: float = Field(
        0.0, allow_inf_nan=False, description='As reward_model_unread_score: the cost of such a response.'
    )
    cost_critic_model_name_or_path: str | None = Field(
        None, description='What the critic of costs starts from, such as the cost model; null is as for the other.'
    )

    @property
    def judges(self) -> dict[str, JudgeCfgs]:
        cost = JudgeCfgs(
            'cost_model', self.cost_model_name_or_path, self.cost_model_max_length, self.cost_model_unread_score
        )
        return {**super().judges, COST: cost}

    @property
    def critics(self) -> dict[str, str | None]:
        return {**super().critics, 'cost_critic': self.cost_critic_model_name_or_path}


class VLLMCfgs(Cfgs):
    """Whether vLLM generates the responses, and how: in the trainer's own processes, or on servers."""

    takes_effect: ClassVar[Effects] = {
        '*': needs('vllm_cfgs.use_vllm', True),
        **{f'vllm_server_{key}': needs('vllm_cfgs.vllm_server_urls') for key in ('timeout', 'transfer')},
    }

    use_vllm: bool = Field(False, description='Generates responses with vLLM instead of transformers.')
    vllm_num_engines: PositiveInt | None = Field(
        None,
        description='Copies of the model that generate. null is one for each device, or for each '
        'vllm_tensor_parallel_size of them, or for each server; another number is refused.',
    )
    vllm_server_urls: list[str] | None = Field(
        None,
        description='Addresses of generation servers (python -m align_anything.rollouts.vllm_server), such as '
        'http://node1:8000. null generates in the processes that train, on their devices.',
    )
    vllm_server_timeout: PositiveFloat = Field(
        1800.0, description='Seconds after which a server that answers nothing counts as dead.'
    )
    vllm_server_transfer: Literal['http', 'gloo', 'nccl'] = Field(
        'http',
        description='How weights go to the servers: over HTTP, or through a process group, nccl between GPUs. A group '
        'needs vLLM where training runs too.',
    )
    vllm_tensor_parallel_size: PositiveInt = Field(1, description='Tensor parallel size: devices that share one copy.')
    vllm_enable_prefix_caching: bool = Field(True, description='Prefix caching: shared prefixes are computed once.')
    vllm_enforce_eager: bool = Field(
        True, description='Runs without CUDA graphs: starts sooner, takes less memory, and generates more slowly.'
    )
    vllm_gpu_memory_utilization: float = Field(
        0.3,
        gt=0,
        le=1,
        description='Share of the memory of a device that vLLM takes, weights included. On a CPU, of the free memory, '
        'for the KV cache.',
    )
    vllm_max_model_len: PositiveInt | None = Field(
        None, description='Tokens of the longest prompt with its response; null is model_max_length. It may be larger.'
    )
    vllm_enable_sleep: bool = Field(
        False, description='Gives the memory of a GPU back while the policy is trained. Leave the share to it then.'
    )
    vllm_async: bool = Field(
        False,
        description='Asynchronous rollout: generates the next responses while the last are trained on, with weights '
        'one rollout older. It needs a rollout_correction_cap, which corrects for that.',
    )
    vllm_probe_tolerance: PositiveFloat | None = Field(
        None,
        description='The run stops when, after new weights, log-probabilities of vLLM differ from those of the trainer '
        'by more than this in the mean. null is 0.01 in float32 and 0.1 in half precision.',
    )


def _have_scales(facts: Facts) -> bool:
    models, rewards = facts.cfgs.model_cfgs, facts.cfgs.reward_cfgs
    world = facts.cfgs.environment_cfgs.environment
    sources = [*rewards.reward_functions, models.reward_model_name_or_path, models.remote_rm_url, world]
    return len([source for source in sources if source]) > 1


AS_THEY_ARE = ('sum_then_normalize',)


SCORERS = (
    *('reward_cfgs.reward_functions', 'model_cfgs.reward_model_name_or_path', 'model_cfgs.remote_rm_url'),
    'environment_cfgs.environment',
)


class RewardCfgs(Cfgs):
    """What rewards a response: the weighted sum of what a model, a service and functions say."""

    takes_effect: ClassVar[Effects] = {
        'reward_aggregation': (
            Effect(
                _have_scales,
                'it means nothing for one reward alone; leave it out.',
                by=SCORERS,
                off=AS_THEY_ARE,
            ),
            Effect(
                lambda facts: facts.algorithm.num_generations > 1,
                'it means nothing with one response to a prompt, which is compared with no other; give '
                'num_generations of 2 or more, or leave it out.',
                by=('train_cfgs.num_generations',),
                off=AS_THEY_ARE,
            ),
            excludes(
                'train_cfgs.normalize_reward',
                why='it brings each reward to scale by its group, and normalize_reward their sum by the whole run; '
                'leave one of them out.',
                off=AS_THEY_ARE,
            ),
        ),
        'reward_model_weight': needs('model_cfgs.reward_model_name_or_path'),
        'remote_rm_weight': needs('model_cfgs.remote_rm_url'),
        **{key: needs('reward_cfgs.reward_functions') for key in ('reward_weights', 'reward_kwargs')},
    }

    reward_model_weight: FiniteFloat = Field(1.0, description='Weight of the score of the reward model.')
    remote_rm_weight: FiniteFloat = Field(1.0, description='Weight of the rewards of the service.')
    reward_functions: list[str] = Field(
        [], description='Functions that reward responses: registered names, or file.py:name of your own.'
    )
    reward_weights: list[FiniteFloat] | None = Field(
        None, description='Weight of each of reward_functions. null weighs all with 1.'
    )
    reward_aggregation: Literal['sum_then_normalize', 'normalize_then_sum'] = Field(
        'sum_then_normalize',
        description='Weighs rewards as they are (sum_then_normalize), or each once it has mean 0 and deviation 1 over '
        'the responses to a prompt (normalize_then_sum), so that weights hold whatever the scales.',
    )
    reward_kwargs: dict[str, dict[str, Any]] = Field(
        {}, description='Arguments of reward functions, by the name of the function.'
    )


class OnlineLoraCfgs(LoraCfgs):
    """Low-rank adapters instead of training all weights, without dropout."""

    lora_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description='Dropout on the inputs of the adapters. Only online_dpo takes some: elsewhere the update would '
        'compare the policy under dropout with itself without, and no ratio would be 1.',
    )


class OnlineLoggerCfgs(LoggerCfgs):
    """What the run writes, where, and how often, responses too."""

    log_completions: PositiveInt | None = Field(
        None,
        description='Rollouts between two whose prompts, responses and rewards are written to completions.jsonl, and '
        'shown on completions.html, the console and the tracker; the last of a run always is. null shows none.',
    )


class OnlineRunCfgs(RunCfgs):
    """All settings of a run that generates what it learns from."""

    model_cfgs: OnlineModelCfgs = Field(default_factory=OnlineModelCfgs)
    logger_cfgs: OnlineLoggerCfgs = Field(default_factory=OnlineLoggerCfgs)
    lora_cfgs: OnlineLoraCfgs = Field(default_factory=OnlineLoraCfgs)
    reward_cfgs: RewardCfgs = Field(default_factory=RewardCfgs)
    vllm_cfgs: VLLMCfgs = Field(default_factory=VLLMCfgs)
    environment_cfgs: EnvironmentCfgs = Field(default_factory=EnvironmentCfgs)


class PolicyRunCfgs(OnlineRunCfgs):
    """The same of policy gradient algorithms."""

    data_cfgs: PtxDataCfgs = Field(default_factory=PtxDataCfgs)


class CriticRunCfgs(PolicyRunCfgs):
    """The same of those with a critic."""

    model_cfgs: CriticModelCfgs = Field(default_factory=CriticModelCfgs)


class SafeRunCfgs(CriticRunCfgs):
    """The same of those with costs."""

    model_cfgs: SafeModelCfgs = Field(default_factory=SafeModelCfgs)
