"""What online learning wants of a row: a prompt, and what its responses will be judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Example, Piece, Skipped
from align_anything.datasets.conversation import without_prompt_text
from align_anything.datasets.dataset import Formatted
from align_anything.datasets.formatters.base import PROMPT_ONLY, BaseFormatter


@dataclass(frozen=True)
class PromptTask:
    """A conversation up to the turn to answer; its ground truth rides along in `meta`.

    Attributes:
        encode_prompt: `FamilySpec.encode_prompt`.
        longest: tokens of the longest prompt that leaves capacity for a response.
        guided: whether the prompt is encoded with its text left empty too.
        limit: setting that bounds a response.
    """

    encode_prompt: Callable[[Conversation], Piece]
    longest: int
    guided: bool = False
    limit: str = 'max_new_tokens'
    needs_reply: ClassVar[bool] = False
    needs_other: ClassVar[bool] = False

    def format(self, formatter: BaseFormatter, row: dict[str, Any], other: dict[str, Any] | None = None) -> Formatted:
        """Returns the row's one conversation, without the answer it may have."""
        formatter.require_hook(PROMPT_ONLY)
        conversation, meta = formatter.format_prompt_only_sample(row)
        return [conversation], meta

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns an Example without responses, media decoded. Raises SampleError for a prompt that is too long."""
        (conversation,) = conversations
        prompt = self.encode_prompt(conversation)
        if len(prompt) > self.longest:
            raise SampleError(
                f'the prompt has {len(prompt)} tokens; at most {max(self.longest, 0)} fit beside {self.limit}: raise '
                f'model_cfgs.model_max_length, lower {self.limit}, or shorten the row'
            )
        unconditional = self.encode_prompt(without_prompt_text(conversation)) if self.guided else None
        return Example(prompt, [], conversation=conversation, unconditional=unconditional)


@dataclass
class Prompts:
    """The prompts of one rollout on this rank, and the rows that fell out of it."""

    examples: list[Example]
    skipped: list[Skipped] = field(default_factory=list)


def as_prompts(examples: Sequence[Example], skipped: Sequence[Skipped]) -> Prompts:
    """Collates prompts as they are: what generates lays them out."""
    return Prompts(list(examples), list(skipped))
