"""Settings that only online algorithms have: how responses are drawn, and what rewards them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from align_anything.configs.schema import Cfgs


class SamplingCfgs(Cfgs):
    """How responses are drawn, beside what `model_cfgs` says of every run."""

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


class OnlineModelCfgs(SamplingCfgs):
    """Sampling, and the models that reward what was drawn."""

    reward_model_name_or_path: str | None = Field(
        None, description='Reward model, as rm saves it. It may have another tokenizer and template.'
    )


class RewardCfgs(Cfgs):
    """What rewards a response: the weighted sum of the reward model and of functions."""

    reward_model_weight: float = Field(1.0, description='Weight of the score of the reward model.')
    reward_functions: list[str] = Field(
        [], description='Functions that reward responses: registered names, or file.py:name of your own.'
    )
    reward_weights: list[float] | None = Field(
        None, description='Weight of each of reward_functions. null weighs all with 1.'
    )
    reward_kwargs: dict[str, dict[str, Any]] = Field(
        {}, description='Arguments of reward functions, by the name of the function.'
    )
