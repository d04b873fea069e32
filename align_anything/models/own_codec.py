"""What families share whose checkpoints hold the codec of the pictures that they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align_anything.core.errors import ModelError
from align_anything.models.checkpoint import local_folder
from align_anything.models.codecs.base import CodecRules, codec_rules
from align_anything.models.declared_codes import declared_codes


def own_codec(config: Any) -> CodecRules:
    """Returns the rules of the codec within the checkpoint of a configuration.

    Raises ModelError where it has none, and where other codes are declared.
    """
    if declared_codes(config) is not None:
        raise ModelError(
            f"media_codes: checkpoints of type '{config.model_type}' bring a codec, and no other can take its place: "
            'leave media_codes out.'
        )
    return codec_rules(local_folder(config.name_or_path))


def first_of(names: Sequence[str], vocabulary: Mapping[str, int], model_type: str) -> int:
    """Returns the id of the first of the tokens that codes are, whose ids have to follow each other.

    Raises ModelError where the vocabulary lacks one or has them in another order.
    """
    ids = [vocabulary.get(name) for name in names]
    if None in ids or ids != list(range(ids[0], ids[0] + len(ids))):
        raise ModelError(
            f"the vocabulary of this '{model_type}' checkpoint (vocabulary_map in config.json) does not hold the "
            f'{len(names)} tokens {names[0]} to {names[-1]} one after the other.'
        )
    return ids[0]


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Returns the ids of a text, and no others around them."""
    return tuple(tokenizer(text, add_special_tokens=False)['input_ids'])
