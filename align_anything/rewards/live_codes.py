"""Codes of media that come as a run goes, for models that read media as codes and judge what another one generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from align_anything.core.types import CodedMedia, Conversation, MediaKind, Message, decoded_medium
from align_anything.datasets.media.audio import resampled
from align_anything.models.codecs.base import Codec
from align_anything.models.codes import CODES, MediaCodes


@dataclass(frozen=True)
class LiveCodes:
    """Encodes media as they come, for a model that reads what another one generated."""

    codes: MediaCodes
    device: torch.device | str
    _open: dict[MediaKind, Codec] = field(default_factory=dict)

    def beside(self, conversations: Sequence[Conversation]) -> list[Conversation]:
        """Returns decoded conversations with codes beside each medium that is read as such and brings none.

        Audio is resampled to the rate of its codec. Raises SampleError for a medium that the codec cannot take.
        """
        made: dict[int, CodedMedia] = {}

        def part_of(message: Message, part: dict[str, Any]) -> dict[str, Any]:
            kind, medium, beside = part['type'], decoded_medium(part), part.get(CODES)
            as_codes = kind in self.codes.kinds and (message['role'] == 'assistant' or kind in self.codes.prompts)
            known = beside is not None and beside.codec == self.codes.rules[kind].fingerprint if as_codes else True
            if medium is None or known:
                return part
            if id(medium) not in made:
                made[id(medium)] = self._encoded(kind, medium)
            return {**part, CODES: made[id(medium)]}

        return [
            [
                {**message, 'content': [part_of(message, part) for part in message['content']]}
                for message in conversation
            ]
            for conversation in conversations
        ]

    def _encoded(self, kind: MediaKind, medium: Any) -> CodedMedia:
        rules = self.codes.rules[kind]
        if kind not in self._open:
            self._open[kind] = rules.open(self.device)
        medium = resampled(medium, rules.rate) if kind == 'audio' else medium
        (codes,) = self._open[kind].encode([medium])
        return CodedMedia(kind, codes, rules.fingerprint)
