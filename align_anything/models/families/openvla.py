"""OpenVLA: a picture and a task in, the bins of an action out; the class comes with the checkpoint.

The checkpoint's own forward pass puts one picture behind the first token and takes one row at a time where it
generates. Here features stand at placeholders, so that rows differ in length, and an episode shows one in each turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from align_anything.core.actions import ActionSpace, Statistics
from align_anything.core.errors import ModelError
from align_anything.core.types import CodedMedia, Conversation, Piece
from align_anything.models.body import BodyWithin
from align_anything.models.family import FamilySpec
from align_anything.models.own_code import IMAGE, MARKS, OwnCodeEncoder, OwnCodeSpec, Written, by_kind
from align_anything.models.rendering import Run

PLACEHOLDER, FEATURE_TOKEN = '<image>', '<unk>'
ARM = 'x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper'
"""The numbers of an action in all published checkpoints: how the hand moves and turns, and whether it is open."""


class AccustomedOpenVLAModel(BodyWithin):
    """OpenVLA with the features of pictures wherever they are marked."""

    def embedded(self, ids: Tensor, marks: Tensor | None, pixel_values: Tensor | None) -> Tensor:
        """Returns embeddings `(rows, length, size)`, those of pictures where `marks` `(rows, length)` says so."""
        embeds = self.get_input_embeddings()(ids)
        if pixel_values is None or marks is None:
            return embeds
        features = self.projector(self.vision_backbone(pixel_values)).flatten(0, 1)
        where = marks == IMAGE
        if int(where.sum()) != len(features):
            raise ModelError(
                f'the vision backbone makes {len(features)} features of {len(pixel_values)} pictures, but '
                f'{int(where.sum())} tokens stand for them: image_sizes and timm_model_ids in config.json are not its.'
            )
        return embeds.masked_scatter(where[..., None], features.to(embeds.dtype))

    def body(
        self, input_ids: Tensor, media_marks: Tensor | None = None, pixel_values: Tensor | None = None, **inputs: Any
    ) -> Any:
        """Returns the text model's output, its `last_hidden_state` `(rows, length, size)`."""
        embeds = self.embedded(input_ids, media_marks, pixel_values)
        return self.language_model.model(input_ids=None, inputs_embeds=embeds, **inputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        media_marks: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Returns what the checkpoint's own forward pass does for pictures without marks, else logits of marked ones.

        Args:
            input_ids, attention_mask, media_marks: `(rows, length)`; tokens marked 1 stand for features.
            pixel_values: of all pictures in order, `(pictures, channels, side, side)`.
            inputs: further arguments of the text model.
        """
        if pixel_values is not None and media_marks is None:
            return super().forward(input_ids, attention_mask, pixel_values, **inputs)
        embeds = self.embedded(input_ids, media_marks, pixel_values)
        return self.language_model(inputs_embeds=embeds, attention_mask=attention_mask, **inputs)

    # `generate()` knows by the name `kwargs` that arguments go on to `forward`.
    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """Returns what one step of `generate()` takes, pictures in the first one only, for any number of rows."""
        return GenerationMixin.prepare_inputs_for_generation(self, input_ids, **kwargs)


class OpenVLAEncoder(OwnCodeEncoder):
    """Writes as many placeholders for a picture as the vision backbone has patches."""

    def __init__(self, patches: int, *args: Any) -> None:
        """Takes the number of patches, and the base class's arguments."""
        super().__init__(*args)
        self.patches = patches

    def written(self, run: Run, first_number: int) -> tuple[list[Written], dict[str, Tensor]]:
        """Returns the tokens of each picture, and the pixels of all."""
        images = [image.convert('RGB') for image in by_kind(run, 'image')]
        (token,) = self.media_token_ids
        pixels = self.processor.image_processor(images, return_tensors='pt')['pixel_values']
        return [Written([token] * self.patches, [IMAGE] * self.patches)] * len(images), {'pixel_values': pixels}

    def text_ids(self, text: str, first: bool, behind_medium: bool) -> list[int]:
        """Tokenises a stretch of text, as a text of its own behind a picture, where the own code puts pictures in."""
        if behind_medium and not first:
            return self.tokenizer(text, add_special_tokens=False)['input_ids']
        return super().text_ids(text, first, behind_medium)


class OpenVLASpec(OwnCodeSpec):
    """The prompt of OpenVLA; its `norm_stats` are the statistics of its actions."""

    placeholders = {'image': PLACEHOLDER}
    feature_token = FEATURE_TOKEN
    not_in_vllm = 'vLLM has no class of OpenVLA, and runs no code that comes with a checkpoint in place of one'
    component_prefixes = {
        'vision_tower': ('vision_backbone',),
        'mm_proj': ('projector',),
        'language_model': ('language_model',),
    }
    # Behind the colon stands the blank that the own code puts there. Later turns of an episode may be pictures alone.
    chat_template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{{ 'Out: ' }}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        "{{ eos_token }}{% elif message['role'] == 'user' %}"
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
        "{% set said = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}"
        "{% if said %}{{ 'In: What action should the robot take to ' + said + '?\\n' }}{% endif %}"
        "{% else %}{{ raise_exception('OpenVLA knows users and itself') }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Out: ' }}{% endif %}"
    )

    @property
    def encoder_class(self) -> Any:
        """What makes the encoder, for the pictures of this checkpoint."""
        found = re.search(r'patch(\d+)', self.config.timm_model_ids[0])
        if found is None:
            raise ModelError(f"nothing says how large the patches of '{self.config.timm_model_ids[0]}' are.")
        return partial(OpenVLAEncoder, (self.config.image_sizes[0] // int(found[1])) ** 2)

    def _marked(self, conversations: Sequence[Conversation]) -> tuple[list[Conversation], tuple[CodedMedia, ...]]:
        if self.space is not None and self.space.states:
            raise ModelError(
                'OpenVLA has a prompt of fixed words, in which no state of a body is told: leave '
                'action_cfgs.action_states out.'
            )
        return super()._marked(conversations)

    def generation_inputs(self, prompts: Sequence[Piece]) -> dict[str, Any]:
        """Returns the arguments of `generate()` of the Accustomed class, which takes marks."""
        inputs = FamilySpec.generation_inputs(self, prompts)
        return inputs if 'pixel_values' in inputs else {key: inputs[key] for key in inputs if key != MARKS}


def space_of(config: Any) -> ActionSpace | None:
    """Returns the space that `norm_stats` in `config.json` tell, one step in a turn; None where there are none.

    Raises ModelError for statistics of actions that differ in their number of dimensions.
    """
    known = config.norm_stats
    if not known:
        return None
    statistics = {name: statistics_of(own['action']) for name, own in known.items()}
    size = len(next(iter(statistics.values())).low)
    bins, text = config.n_action_bins, config.text_config
    # The vocabulary without the rows that it was padded with.
    first = text.vocab_size - config.pad_to_multiple_of - bins
    space = ActionSpace(
        dimensions=ARM if size == len(ARM) else tuple(f'x{number}' for number in range(size)),
        bins=bins,
        binning='openvla',
        statistics=statistics,
        # What was done to pictures is in no file of the checkpoint.
        pictures=None,
        tokens='tail',
        first_ids=(first,) * size,
    )
    problems = space.problems()
    if problems:
        raise ModelError('norm_stats in config.json: ' + '\n'.join(problems))
    return space


def statistics_of(own: Mapping[str, Any]) -> Statistics:
    """Returns what an entry of `norm_stats` says of actions. Raises ModelError where it lacks the percentiles."""
    missing = [name for name in ('q01', 'q99') if name not in own]
    if missing:
        raise ModelError(f'norm_stats in config.json have no {missing[0]} of actions, which tokens stand between.')
    low, high = tuple(own['q01']), tuple(own['q99'])
    # Only tokens are read here, whose numbers lie between percentiles.
    mean, std = tuple(own.get('mean', (0.0,) * len(low))), tuple(own.get('std', (1.0,) * len(low)))
    return Statistics(low, high, mean, std, tuple(map(bool, own.get('mask', (True,) * len(low)))))


MODEL, SPEC, SPACE = AccustomedOpenVLAModel, OpenVLASpec, space_of
