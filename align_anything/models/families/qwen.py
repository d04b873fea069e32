"""Qwen-VL-Chat: images are paths in the text, which the model opens itself; here it gets the pixels instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from align_anything.core.errors import ModelError, SampleError
from align_anything.models.own_code import IMAGE, MARKS, OwnCodeEncoder, OwnCodeSpec, Written
from align_anything.models.rendering import Run

START, PAD, END = '<img>', '<imgpad>', '</img>'
PLACEHOLDER = START + END
# Of CLIP, in the order red, green, blue.
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class QwenVLEncoder(OwnCodeEncoder):
    """Writes `Picture 1: <img>…</img>`, with padding where the checkpoint's tokenizer would put a path."""

    def __init__(self, side: int, queries: int, *args: Any) -> None:
        """Takes the side of an image in pixels and its number of tokens, and the base class's arguments."""
        super().__init__(*args)
        self.side, self.queries = side, queries

    def spelled(self, run: Run, first_number: int) -> str:
        """Returns the text of a run with the number of each image. Raises SampleError for a tag in the text."""
        parts = run.text.split(PLACEHOLDER)
        if any(tag in part for part in parts for tag in (START, END)):
            raise SampleError(f'the text holds {START} or {END}, which this model takes for the path of an image')
        numbers = range(first_number, first_number + len(parts) - 1)
        return parts[0] + ''.join(
            f'Picture {number}: {PLACEHOLDER}{part}' for number, part in zip(numbers, parts[1:], strict=True)
        )

    def written(self, run: Run, first_number: int) -> tuple[list[Written], dict[str, Tensor]]:
        """Returns the tokens of each image, and their pixels."""
        start, pad, end = self.tokenizer.convert_tokens_to_ids([START, PAD, END])
        tokens = Written([start, *[pad] * self.queries, end], [0, *[IMAGE] * self.queries, 0])
        pixels = torch.stack([self._pixels(item) for _, item in run.media])
        return [tokens] * len(run.media), {'pixel_values': pixels}

    def _pixels(self, image: Image.Image) -> Tensor:
        small = image.convert('RGB').resize((self.side, self.side), Image.Resampling.BICUBIC)
        colours = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
        return (colours - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


@contextmanager
def shown(tower: nn.Module, pixels: Tensor | None) -> Iterator[None]:
    """Lets the tower encode these pixels where its class would open files by the paths in the text."""
    if pixels is None:
        yield
        return
    vars(tower)['encode'] = lambda paths: tower(pixels)
    try:
        yield
    finally:
        del vars(tower)['encode']


def with_pixels(inputs: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """Returns the inputs that the checkpoint's own code knows, and the pixels, which it does not."""
    known = {name: value for name, value in inputs.items() if name not in ('pixel_values', MARKS)}
    return known, inputs.get('pixel_values')


class AccustomedQwenVLBody:
    """Takes the pixels of images beside the ids."""

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Returns the body's output."""
        known, pixels = with_pixels(inputs)
        with shown(self.visual, pixels):
            return super().forward(*args, **known)


class AccustomedQwenVLModel:
    """Qwen-VL with a language-model head."""

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Returns what the checkpoint's own forward pass does, for paths in the ids or for `pixel_values`."""
        known, pixels = with_pixels(inputs)
        with shown(self.transformer.visual, pixels):
            return super().forward(*args, **known)


class QwenVLSpec(OwnCodeSpec):
    """ChatML, which the checkpoint's code writes without a template, and no processor."""

    brings_processor = False
    placeholders = {'image': PLACEHOLDER}
    feature_token = PAD
    chat_template = (
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
        '{% for message in messages %}'
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    component_prefixes = {
        'vision_tower': ('transformer.visual',),
        'mm_proj': ('transformer.visual.attn_pool',),
        'language_model': ('transformer', 'lm_head'),
    }

    def __init__(self, config: Any, tokenizer: Any, processor: Any = None, **how: Any) -> None:
        """Reads the checkpoint. Raises ModelError as the base class does, and for a Qwen that sees no images."""
        if not config.to_dict().get('visual'):
            raise ModelError('of the first Qwen models only Qwen-VL is known here; this checkpoint reads no images.')
        if tokenizer.eos_token is None:
            # The checkpoint's tokenizer says of no token that it ends a text.
            tokenizer.eos_token = '<|im_end|>'
        super().__init__(config, tokenizer, processor, **how)

    @property
    def encoder_class(self) -> Any:
        """What makes the encoder, for the images of this checkpoint."""
        visual = self.config.visual
        return partial(QwenVLEncoder, visual['image_size'], visual['n_queries'])


MODEL, BODY, SPEC = AccustomedQwenVLModel, AccustomedQwenVLBody, QwenVLSpec
