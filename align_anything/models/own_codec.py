"""What families share whose checkpoints hold the codec of the pictures that they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

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


class EveryLogit:
    """What puts itself before a class of transformers that keeps the logits of codes back, or has none of them."""

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Returns the logits of hidden states, `(rows, length, vocabulary)`, those of codes among them."""
        return self.lm_head(hidden)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **inputs: Any,
    ) -> CausalLMOutputWithPast:
        """Returns the logits of all ids, `(rows, length, vocabulary)`; takes the arguments of transformers' class."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **inputs,
        )
        kept = slice(-logits_to_keep, None) if type(logits_to_keep) is int else logits_to_keep
        logits = self.logits_of(outputs.last_hidden_state[:, kept])
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)
