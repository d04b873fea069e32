"""Phi-3-vision: images stand at negative ids; the class comes with the checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from align_anything.models.own_code import IMAGE, MARKS, OwnCodeEncoder, OwnCodeSpec, Written, by_kind
from align_anything.models.rendering import Run

PLACEHOLDER = '<|image|>'


class Phi3VEncoder(OwnCodeEncoder):
    """Tokenises as the processor of Phi-3-vision does: every stretch of text behind an image is a text of its own."""

    def written(self, run: Run, first_number: int) -> tuple[list[Written], dict[str, Tensor]]:
        """Returns the tokens of each image, and the crops of all."""
        found = self.processor.image_processor(by_kind(run, 'image'), return_tensors='pt')
        (token,) = self.media_token_ids
        written = [Written([token] * int(number), [IMAGE] * int(number)) for number in found['num_img_tokens']]
        return written, {name: found[name] for name in ('pixel_values', 'image_sizes')}

    def text_ids(self, text: str, first: bool, behind_medium: bool) -> list[int]:
        """Tokenises a stretch of text, with a BOS where the checkpoint's processor puts one."""
        return super().text_ids(text, first or behind_medium, behind_medium)


def negative(inputs: dict[str, Any]) -> dict[str, Any]:
    """Returns the inputs with the ids at which images stand made negative, in a copy: the checkpoint changes them."""
    marks = inputs.get(MARKS)
    if marks is None:
        return inputs
    ids = inputs['input_ids'].masked_fill(marks == IMAGE, -1)
    return {**{name: value for name, value in inputs.items() if name != MARKS}, 'input_ids': ids}


class AccustomedPhi3VBody:
    """Marks images by negative ids, as the checkpoint's own body wants them."""

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Returns the body's output."""
        return super().forward(*args, **negative(inputs))


class AccustomedPhi3VModel:
    """Phi-3-vision with a language-model head."""

    def infer_batch(self, **inputs: Any) -> dict[str, Any]:
        """Returns the arguments of the checkpoint's own forward pass for a batch."""
        return negative(inputs)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Returns what the checkpoint's own forward pass does."""
        return super().forward(*args, **self.infer_batch(**inputs))


class Phi3VSpec(OwnCodeSpec):
    """Images of any shape, in crops."""

    encoder_class = Phi3VEncoder
    placeholders = {'image': PLACEHOLDER}
    feature_token = PLACEHOLDER
    component_prefixes = {
        'vision_tower': ('model.vision_embed_tokens.img_processor',),
        'mm_proj': ('model.vision_embed_tokens',),
        # The embeddings of text have a second name inside those of images.
        'language_model': ('model', 'model.vision_embed_tokens.wte', 'lm_head'),
    }


MODEL, BODY, SPEC = AccustomedPhi3VModel, AccustomedPhi3VBody, Phi3VSpec
