"""Whether speech says the text that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import PositiveInt

from align_anything.core.types import Audio
from align_anything.rewards.base import Completion, Values, register_reward, text_asked_for
from align_anything.rewards.edit_distance import error_rate, plain_words
from align_anything.rewards.frozen import LISTENERS, Device, Frozen, checkpoint_for, frozen, heard, role_of
from align_anything.rewards.media import SOUNDS, Missing, mean_by_response, sounds_of


@register_reward('transcript', reads=SOUNDS)
def transcript(
    completions: Sequence[Completion],
    *,
    model: Annotated[str, checkpoint_for(*LISTENERS)],
    column: str | None = None,
    unit: Literal['word', 'character'] = 'word',
    language: str | None = None,
    device: Device = None,
    batch_size: PositiveInt = 16,
    missing: Missing = 0.0,
) -> Values:
    """1 less the word error rate of what a speech recognizer hears, against the text that was asked for; at least 0.

    Case and punctuation do not count. The speech is resampled to the rate of the model, and what is longer than it
    hears at once is read in stretches. It decodes greedily.

    Args:
        completions: the responses.
        model: checkpoint: Whisper, or Wav2Vec2 and its like with a CTC head.
        column: column of the row with the text; None is the text of the last user turn.
        unit: what errors are counted in; `character` suits languages without spaces between words.
        language: that Whisper is told, such as `en`; None lets it find out.
        device: where the model runs; None is the device of this rank.
        batch_size: stretches of speech that Whisper hears in one pass.
        missing: reward of a response without audio; None abstains.

    Raises:
        RewardError: a row has no text.
    """

    def worth(said: str, wanted: str) -> float:
        said_units, wanted_units = plain_words(said), plain_words(wanted)
        if unit == 'character':
            said_units, wanted_units = ''.join(said_units), ''.join(wanted_units)
        return max(0.0, 1 - error_rate(said_units, wanted_units))

    def score(sounds: list[Audio], owners: list[Completion]) -> list[float]:
        wanted = [text_asked_for(owner, column) for owner in owners]
        role = role_of(model, LISTENERS)
        listener = frozen(model, role, device)
        stretches = [heard(listener, sound) for sound in sounds]
        flat = [samples for own in stretches for samples in own]
        texts = iter(
            _generated(listener, flat, language, batch_size) if role is LISTENERS[0] else _read_off(listener, flat)
        )
        said = [' '.join(next(texts) for _ in own) for own in stretches]
        return [worth(one, other) for one, other in zip(said, wanted, strict=True)]

    return mean_by_response(completions, sounds_of, score, missing)


def _generated(listener: Frozen, stretches: Sequence[Any], language: str | None, batch_size: int) -> list[str]:
    """What a model writes that generates its text; all its inputs have the length of its window."""
    told = {} if language is None else {'language': language, 'task': 'transcribe'}
    texts = []
    for start in range(0, len(stretches), batch_size):
        inputs = listener.processor(
            audio=list(stretches[start : start + batch_size]),
            sampling_rate=listener.rate,
            return_tensors='pt',
            return_attention_mask=True,
        )
        with torch.inference_mode():
            ids = listener.model.generate(**inputs.to(listener.model.device), do_sample=False, num_beams=1, **told)
        texts += listener.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def _read_off(listener: Frozen, stretches: Sequence[Any]) -> list[str]:
    """The most likely symbol of each moment, one stretch at a time: to many such models padding is a sound."""
    texts = []
    for samples in stretches:
        inputs = listener.processor(audio=samples, sampling_rate=listener.rate, return_tensors='pt')
        with torch.inference_mode():
            logits = listener.model(**inputs.to(listener.model.device)).logits
        texts += listener.processor.tokenizer.batch_decode(logits.argmax(-1).cpu())
    return texts
