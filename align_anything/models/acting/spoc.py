"""A model that acts: frozen vision and text, a fusion of both for each step, a causal decoder over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from align_anything.models.acting.actors import make_actor
from align_anything.models.acting.configuration import MODEL_TYPE, SpocConfig
from align_anything.models.acting.layers import Decoder, positions
from align_anything.models.acting.vision import VisualEncoder


@dataclass
class Steps:
    """What the model is given of steps, each of which has pictures.

    Attributes:
        frames: `(steps, cameras, 3, height, width)` uint8.
        goals: token ids `(goals, length)`; `goal_mask` is false where they are filled up.
        goal_of: the goal of each step, `(steps,)`.
        sensors: the state of each sensor, `(steps,)` int64 by name.
        state: numbers of the body, `(steps, state_size)`; of no width where the model reads none.
    """

    frames: Tensor
    goals: Tensor
    goal_mask: Tensor
    goal_of: Tensor
    sensors: dict[str, Tensor] = field(default_factory=dict)
    state: Tensor | None = None


class SpocModel(PreTrainedModel):
    """EarlyFusionCnnTransformer of SPOC, or a smaller one: `forward(...) -> (episodes, length, size)`.

    The vector of a step knows its pictures, those before and the actions before. `actor` makes the next action of it.
    """

    config_class = SpocConfig
    base_model_prefix = ''
    main_input_name = 'frames'
    _supports_sdpa = True
    supports_gradient_checkpointing = False

    def __init__(self, config: SpocConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.visual_encoder = VisualEncoder(config)
        self.decoder = Decoder(size, config.decoder_layers, config.decoder_heads, config.decoder_size)
        self.actor = make_actor(config)
        if config.head == 'categorical':
            # Behind the actions come the start of an episode and what fills it up.
            self.last_actions_embed: nn.Module = nn.Embedding(config.actions + 2, size, padding_idx=config.actions + 1)
        else:
            # The last number says that nothing was done yet.
            self.last_actions_embed = nn.Linear(config.chunk * config.dimensions + 1, size)
        self.sensor_embed = nn.ModuleDict({name: nn.Embedding(number, size) for name, number in config.sensors.items()})
        for embedding in (self.last_actions_embed, *self.sensor_embed.values()):
            # Of little weight at first beside what is seen, as in SPOC.
            nn.init.uniform_(embedding.weight, -0.01, 0.01)
        if config.state_size:
            self.state_embed = nn.Linear(config.state_size, size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves the weights as torch makes them."""

    def look(self, steps: Steps) -> Tensor:
        """Returns what is seen in each step, `(steps, size)`; it hangs on no other step."""
        seen = self.visual_encoder(steps.frames, steps.goals, steps.goal_mask, steps.goal_of)
        for name, embedding in self.sensor_embed.items():
            seen = seen + embedding(steps.sensors[name])
        return seen + self.state_embed(steps.state.to(seen.dtype)) if self.config.state_size else seen

    def over_time(self, seen: Tensor, previous: Tensor, first: Tensor | None = None) -> Tensor:
        """Returns the vector of each step, `(episodes, length, size)`, given what is seen in it.

        `previous` is the action before each, its number `(episodes, length)` or `(episodes, length, numbers + 1)`;
        `first` the number of the first step of each episode, `(episodes,)`, None for 0.
        """
        done = self.last_actions_embed(previous if previous.ndim == 2 else previous.to(seen.dtype))
        return self.decoder(seen + done + positions(seen.shape[1], seen, first))

    def forward(
        self, steps: Steps, step_of: Tensor, previous: Tensor, first: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Returns the vector of each step, `(episodes, length, size)`.

        `step_of` `(episodes, length)` is what `steps` has of it, -1 for nothing; `first` is that of `over_time`.
        """
        seen = self.look(steps)
        # The last row stands for nothing.
        seen = torch.cat([seen, seen.new_zeros(1, seen.shape[-1])])
        return self.over_time(seen[step_of], previous, first)


def register() -> None:
    """Makes transformers know the model, so that its checkpoints load by AutoModel."""
    AutoConfig.register(MODEL_TYPE, SpocConfig, exist_ok=True)
    AutoModel.register(SpocConfig, SpocModel, exist_ok=True)


COMPONENTS: Mapping[str, list[str]] = {
    'vision_tower': ['visual_encoder.image_encoder'],
    'mm_proj': ['visual_encoder.visual_compressor', 'visual_encoder.visual_adapter', 'visual_encoder.joined'],
    'text_encoder': ['visual_encoder.text_encoder'],
    'language_model': ['visual_encoder', 'decoder', 'actor', 'last_actions_embed', 'sensor_embed', 'state_embed'],
}
"""Where the parameters of each component begin; the trunk over time stands where others have a language model."""
