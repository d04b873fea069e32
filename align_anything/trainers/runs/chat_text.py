"""Rows as the texts that a checkpoint reads, by the names that the documents of align-anything have for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import ProcessorMixin

from align_anything.core.errors import ModelError
from align_anything.core.types import Conversation
from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.formatters.base import make_formatter
from align_anything.datasets.formatters.columns import Row
from align_anything.datasets.formatters.turns import Meta
from align_anything.models.pretrained_model import spec_of


class ChatTemplate:
    """A dataset's template together with a checkpoint's chat template: raw rows in, texts out.

    The texts are what the datasets of `torch_datasets.py` tokenise, media as the placeholders that the processor
    expands. `meta` is what the dataset's template returns, media included. All methods raise `SampleError` for a row
    that cannot be used, `DataError` for a hook that the template lacks.

    Attributes:
        name, template_kwargs: the name of the dataset's template, and its options.
    """

    def __init__(
        self,
        formatter: Any,
        template: str,
        custom_formatter: Callable[..., str] | None = None,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Pairs the tokenizer or processor `formatter` of a checkpoint with the template called `template`.

        `template_kwargs` are its options, such as the columns it reads.

        Raises ModelError for a `custom_formatter`: chat templates are Jinja texts here; DataError for an unknown name.
        """
        if custom_formatter is not None:
            raise ModelError(
                'ChatTemplate takes no custom_formatter: write it as a chat template in Jinja, which is saved with the '
                'model too, and give that to load_pretrained_models(chat_template=...).'
            )
        self.name, self.template_kwargs = template, dict(template_kwargs or {})
        self._bound = BoundTemplate(make_formatter(template, self.template_kwargs))
        both = isinstance(formatter, ProcessorMixin)
        tokenizer, processor = (formatter.tokenizer, formatter) if both else (formatter, None)
        self._spec = spec_of(tokenizer, processor, trust_remote_code)

    def format_supervised_sample(self, raw_sample: Row) -> tuple[str, str, Meta]:
        """Returns `(prompt, whole text, meta)`: the text begins with the prompt, the last answer follows."""
        conversation, meta = self._bound.formatter.format_supervised_sample(raw_sample)
        return *self._texts(self._bound.bind(conversation, meta)), meta

    def format_preference_sample(self, raw_sample: Row) -> tuple[str, str, Meta]:
        """Returns `(better text, worse text, meta)`, whole texts both."""
        better, worse, meta = self._bound.formatter.format_preference_sample(raw_sample)
        texts = [self._texts(self._bound.bind(conversation, meta))[1] for conversation in (better, worse)]
        return texts[0], texts[1], meta

    def format_prompt_only_sample(self, raw_sample: Row) -> tuple[str, Meta]:
        """Returns `(prompt, meta)`, the prompt with the generation prompt."""
        conversation, meta = self._bound.formatter.format_prompt_only_sample(raw_sample)
        return self._spec.render_prompt(self._bound.bind(conversation, meta, needs_reply=False)).text, meta

    def format_unmatched_supervised_sample(
        self, raw_sample_for_prompt: Row, raw_sample_for_response: Row
    ) -> tuple[str, str, Meta]:
        """Returns `(prompt, whole text, meta)`: the prompt of one row with the answer of another."""
        hook = self._bound.formatter.format_unmatched_supervised_sample
        conversation, meta = hook(raw_sample_for_prompt, raw_sample_for_response)
        return *self._texts(self._bound.bind(conversation, meta)), meta

    def format_chat_sample(self, conversation: Sequence[Mapping[str, Any]]) -> str:
        """Returns the text of a conversation in Hugging Face chat form, without a generation prompt."""
        return self._spec.renderer.text(self._bound.bind(conversation, {}, needs_reply=False))

    def check_equal(self, raw_sample: Row) -> bool:
        """Tells whether both answers of a preference row are the same."""
        return self._bound.check_equal(raw_sample)

    def check_validation(self, raw_sample: Row) -> bool:
        """Tells whether the template can use the row at all."""
        return self._bound.check_validation(raw_sample)

    def _texts(self, conversation: Conversation) -> tuple[str, str]:
        """The prompt of the last answer, and prompt and answer."""
        [runs] = self._spec.render(conversation, 'last')
        words = [
            run.text if run.token is None else self._spec.tokenizer.convert_ids_to_tokens(run.token) for run in runs
        ]
        return words[0], ''.join(words)
