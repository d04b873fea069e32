"""The configuration of a model that acts, in the manner of SPOC (Ehsani et al., 2023, arXiv:2312.02976)."""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from align_anything.core.errors import ModelError

MODEL_TYPE = 'spoc'
Vision = Literal['patches', 'dinov2', 'siglip']
Fusion = Literal['transformer', 'film']
HeadName = Literal['categorical', 'gaussian', 'l1']
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class SpocConfig(PreTrainedConfig):
    """What a SPOC is made of; the defaults are those of the published `small_3` where that has them.

    Attributes:
        vision: what makes features of a picture: a frozen `dinov2` or `siglip`, or `patches`, convolutions that train.
        fusion: what makes one vector of a picture and the goal: a `transformer` over both, or `film`, by which the goal
            scales and shifts the features.
        head: what says the next action: `categorical` over named ones, a `gaussian` over numbers, or `l1`, numbers
            alone.
        vision_config: of the image encoder; None for `patches`.
        text_config: of the text encoder; None for an embedding of words that trains.
        image_size: height and width that pictures are brought to, in pixels.
        image_mean, image_std: of the pixels of each channel, from 0 to 1.
        patch_size: side of what `patches` looks at at once, in pixels.
        grid: height and width that the features of an image encoder are averaged to.
        channels: of the features between vision and fusion.
        cameras: pictures of a step.
        vocab_size: of an embedding of words.
        text_size: size of the embedding of a word.
        goal_length: longest goal in tokens; shorter ones are filled up where `film` reads them.
        hidden_size: of the vector of a step.
        fusion_layers, fusion_heads, fusion_size: of the fusion transformer, the last in its feed-forward layers.
        decoder_layers, decoder_heads, decoder_size: likewise, of the decoder over time.
        actions: number of named actions.
        dimensions: numbers of an action, where it has no name.
        chunk: steps that are said at once, of numbers.
        sensors: what is sensed beside the pictures, as one of so many states, by name.
        state_size: how many numbers tell the state of the body.
        max_steps: most steps of an episode.
        dropout: in the fusion transformer.
        log_std: first logarithm of the standard deviation of a `gaussian`.
    """

    model_type = MODEL_TYPE
    has_no_defaults_at_init = True
    sub_configs = {'vision_config': AutoConfig, 'text_config': AutoConfig}

    def __init__(
        self,
        vision: Vision = 'dinov2',
        fusion: Fusion = 'transformer',
        head: HeadName = 'categorical',
        vision_config: Any = None,
        text_config: Any = None,
        image_size: tuple[int, int] = (224, 384),
        image_mean: tuple[float, ...] = CLIP_MEAN,
        image_std: tuple[float, ...] = CLIP_STD,
        patch_size: int = 8,
        grid: tuple[int, int] = (7, 12),
        channels: int = 512,
        cameras: int = 2,
        vocab_size: int = 0,
        text_size: int = 32,
        goal_length: int = 64,
        hidden_size: int = 512,
        fusion_layers: int = 3,
        fusion_heads: int = 8,
        fusion_size: int = 2048,
        decoder_layers: int = 3,
        decoder_heads: int = 8,
        decoder_size: int = 1536,
        actions: int = 20,
        dimensions: int = 0,
        chunk: int = 1,
        sensors: dict[str, int] | None = None,
        state_size: int = 0,
        max_steps: int = 1000,
        dropout: float = 0.1,
        log_std: float = -1.0,
        **kwargs: Any,
    ) -> None:
        self.vision, self.fusion, self.head = vision, fusion, head
        self.vision_config, self.text_config = _config(vision_config), _config(text_config)
        self.image_size, self.grid = list(image_size), list(grid)
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.patch_size, self.channels, self.cameras = patch_size, channels, cameras
        self.vocab_size, self.text_size, self.goal_length = vocab_size, text_size, goal_length
        self.hidden_size = hidden_size
        self.fusion_layers, self.fusion_heads, self.fusion_size = fusion_layers, fusion_heads, fusion_size
        self.decoder_layers, self.decoder_heads, self.decoder_size = decoder_layers, decoder_heads, decoder_size
        self.actions, self.dimensions, self.chunk = actions, dimensions, chunk
        self.sensors, self.state_size = dict(sensors or {}), state_size
        self.max_steps, self.dropout, self.log_std = max_steps, dropout, log_std
        super().__init__(**kwargs)
        problems = self.problems()
        if problems:
            raise ModelError(f'this {MODEL_TYPE} configuration cannot be used: ' + '; '.join(problems))

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> SpocConfig:
        """Returns itself: what decides is its decoder over time, whatever encodes the goal."""
        return self

    @property
    def maps(self) -> tuple[int, int]:
        """Height and width of the features of a picture."""
        if self.vision == 'patches':
            return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size
        return self.grid[0], self.grid[1]

    def problems(self) -> list[str]:
        """Returns what does not fit together, in words."""
        known = {'vision': ('patches', 'dinov2', 'siglip'), 'fusion': ('transformer', 'film')}
        known['head'] = ('categorical', 'gaussian', 'l1')
        found = [
            f'{name} is {getattr(self, name)!r}, and should be {" or ".join(names)}'
            for name, names in known.items()
            if getattr(self, name) not in names
        ]
        if (self.vision == 'patches') != (self.vision_config is None):
            found.append(f'vision {self.vision} {"has no" if self.vision == "patches" else "needs a"} vision_config')
        if self.text_config is None and self.vocab_size < 2:
            found.append('without a text_config it takes a vocab_size')
        if self.text_config is not None and self.text_config.model_type not in ('t5', 'siglip_text_model'):
            found.append(f'the text encoder is a {self.text_config.model_type}, and should be t5 or siglip_text_model')
        if self.head == 'categorical' and (self.actions < 2 or self.dimensions or self.chunk != 1):
            found.append('a categorical head chooses one of actions: it has no dimensions and says no chunk')
        if self.head != 'categorical' and (self.dimensions < 1 or self.chunk < 1):
            found.append(f'the head {self.head} says numbers: it takes dimensions and a chunk')
        if self.hidden_size % self.decoder_heads or self.hidden_size % self.fusion_heads:
            found.append('the heads do not divide the hidden_size')
        return found


def _config(given: Any) -> Any:
    return AutoConfig.for_model(**given) if isinstance(given, dict) else given
