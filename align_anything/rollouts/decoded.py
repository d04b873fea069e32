"""Responses with the media that their codes stand for: decoded once, where they were generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align_anything.core.types import CodedMedia, Example, MediaKind, Piece, Response
from align_anything.models.codecs.base import Codec
from align_anything.models.codes import CODES
from align_anything.models.family import FamilySpec
from align_anything.rollouts.base import Around, Sampling, Tell, said


@dataclass
class DecodedRollouts(Around):
    """Generates with `engine`, and decodes the media in its responses, so that rewards and reports see them.

    A part of a codec that decodes becomes `{'type': kind, kind: medium, 'codes': CodedMedia}`; one of a codec that
    does not keeps its codes as the medium.

    Attributes:
        engine: what samples.
        codecs: of each kind that it writes.
    """

    codecs: Mapping[MediaKind, Codec]

    def generate(
        self, examples: Sequence[Example], sampling: Sampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """As the engine does, with media decoded."""
        found = self.engine.generate(examples, sampling, None if tell is None else self._telling(tell))
        for responses in found:
            for response in responses:
                response.parts = decoded(response.parts, self.codecs)
        return found

    def _telling(self, tell: Tell) -> Tell:
        return lambda number, which, part: tell(number, which, *decoded([part], self.codecs))


def decoded(parts: Sequence[dict[str, Any]], codecs: Mapping[MediaKind, Codec]) -> list[dict[str, Any]]:
    """Returns the parts of a message with the media decoded that codes stand for, where the codec does so."""

    def one(part: dict[str, Any]) -> dict[str, Any]:
        kind = part['type']
        codec = codecs.get(kind)
        if codec is None or not codec.rules.decodes or type(part[kind]) is not CodedMedia:
            return part
        return {**part, kind: codec.decode(part[kind].codes), CODES: part[kind]}

    return [one(part) for part in parts]


def said_with_media(
    spec: FamilySpec, sampling: Sampling, codecs: Mapping[MediaKind, Codec], piece: Piece
) -> list[dict[str, Any]]:
    """Returns what a generated response says, as `said`, with media decoded."""
    return decoded(said(spec, piece, sampling), codecs)
