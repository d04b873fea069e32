"""Rows as datasets of torch, for training loops of one's own, by the names that align-anything's documents have.

What they hold is what runs train on: the same sources, templates and encoding, with the last answer to train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, get_worker_info

from align_anything.algorithms.cost_model import CostModel
from align_anything.configs.schema import DataCfgs
from align_anything.core.errors import DataError
from align_anything.core.logging import get_logger
from align_anything.core.types import Example, Piece, Skipped, map_tensors
from align_anything.datasets.dataset import ExampleDataset, Formatted, SupervisedTask, Task
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.preference import PreferenceTask
from align_anything.datasets.prompts import PromptTask
from align_anything.datasets.skips import told_once
from align_anything.datasets.source_loading import load_sources
from align_anything.models.encoding import join
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import spec_of
from align_anything.policies.token.collator import TokenCollator
from align_anything.trainers.runs.chat_text import ChatTemplate
from align_anything.trainers.runs.data import media_options

IGNORE_INDEX = -100
ANY_PAIR = 'any_to_text'
SAFETY = CostModel.meta_keys

logger = get_logger(__name__)


class Sample(dict[str, Any]):
    """One row by the names of the documents, and the `example` that it was made of."""

    def __init__(self, values: Mapping[str, Any], example: Example) -> None:
        super().__init__(values)
        self.example = example


@dataclass(frozen=True)
class UnmatchedTask:
    """The prompt of a row with the answer of the next one.

    Attributes:
        encode_conversation: `FamilySpec.encode`.
    """

    encode_conversation: Callable[..., Example]
    needs_reply: ClassVar[bool] = True
    needs_other: ClassVar[bool] = True

    def format(self, formatter: BaseFormatter, row: dict[str, Any], other: dict[str, Any] | None = None) -> Formatted:
        """Returns the one conversation."""
        conversation, meta = formatter.format_unmatched_supervised_sample(row, other)
        return [conversation], meta

    def encode(self, conversations: list[Any]) -> Example:
        """Returns its Example, media decoded."""
        return self.encode_conversation(conversations[0], train_on='last')


class _Rows(Dataset[Sample | Skipped]):
    """Rows of one source, tokenised when they are read.

    Rows that make no conversations are left out at once, with a warning that says why. One that cannot be decoded or
    encoded comes as a `Skipped` when it is read, and the collator leaves it out with a warning.
    """

    def __init__(
        self,
        path: str,
        template: ChatTemplate | str,
        tokenizer: Any,
        processor: Any = None,
        name: str | None = None,
        size: int | None = None,
        split: str | None = None,
        data_files: Any = None,
        optional_args: Sequence[str] | str | Mapping[str, Any] = (),
        *,
        trust_remote_code: bool = False,
    ) -> None:
        """Opens `path` and finds the rows that `template` can use.

        Args:
            path: a hub name, a file or a folder, as `train_datasets`.
            template: a `ChatTemplate`, or its name.
            tokenizer, processor: of `load_pretrained_models`; the tokenizer's `model_max_length` is the longest sample.
            name, size, split, data_files, optional_args: as `train_name` and so on.

        Raises:
            DataError: the source cannot be opened, none of its rows be used, or none of the first ones holds media
                while a column that nobody reads looks like it.
            ModelError: the tokenizer's checkpoint is not found.
        """
        self.spec = spec_of(tokenizer, processor, trust_remote_code)
        template_name, options = (
            (template, None) if isinstance(template, str) else (template.name, template.template_kwargs)
        )
        sources = load_sources(
            path,
            template_name,
            template_kwargs=options,
            name=name,
            split=split,
            size=size,
            data_files=data_files,
            optional_args=[optional_args] if isinstance(optional_args, str) else optional_args or None,
            media_options=media_options(DataCfgs()),
        )
        rate = {'rate': self.spec.audio_rate}
        # No pair says what rows may hold: what the checkpoint reads decides.
        self._examples = ExampleDataset(
            sources, self._task(), ANY_PAIR, self.spec.reads, {'audio': rate, 'video': rate}
        )
        self._examples.probe()
        found = {index: self._examples.unformatted(index) for index in range(len(self._examples))}
        left_out = [record for record in found.values() if record is not None]
        self._indices = [index for index, record in found.items() if record is None]
        if not self._indices:
            raise DataError(f"none of the {len(found)} rows of '{path}' can be used:\n{told_once(left_out)}")
        if left_out:
            logger.warning('%d of the %d rows are left out:\n%s', len(left_out), len(found), told_once(left_out))

    def __len__(self) -> int:
        """Rows that the template can use."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample | Skipped:
        example = self._examples[self._indices[index]]
        if isinstance(example, Skipped):
            return example
        for response in example.responses:
            if not torch.isin(response.weights, torch.tensor([0.0, 1.0])).all():
                return Skipped(example.source, 'a turn has a weight between 0 and 1 or above, which labels cannot say')
        return Sample(self._values(example), example)

    def get_collator(self) -> Callable[[Sequence[Sample | Skipped]], dict[str, Any]]:
        """Returns what makes the batch of samples, for the `collate_fn` of a `DataLoader`."""
        return self._collate

    def _collate(self, samples: Sequence[Sample | Skipped]) -> dict[str, Any]:
        skipped = [sample for sample in samples if isinstance(sample, Skipped)]
        present = [sample for sample in samples if not isinstance(sample, Skipped)]
        if not present:
            raise DataError(f'no row of this batch can be used:\n{told_once(skipped)}')
        if skipped:
            logger.warning('%d rows of a batch are left out:\n%s', len(skipped), told_once(skipped))
        # Worker processes are forked, and must not touch an accelerator.
        here = torch.cuda.is_available() and get_worker_info() is None
        return map_tensors(self._batch(present), lambda tensor: tensor.cuda() if here else tensor)

    def _task(self) -> Task:
        raise NotImplementedError

    def _values(self, example: Example) -> dict[str, Any]:
        raise NotImplementedError

    def _batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        raise NotImplementedError


class SupervisedDataset(_Rows):
    """Conversations whose last answer is to be learnt.

    A sample has `input_ids` and `labels`, `(length,)`, -100 where nothing is trained, and the tensors of its media. A
    batch is what the model takes, `model(**batch).loss`: `input_ids`, `labels` and `attention_mask`,
    `(samples, longest)`, padded on the right, positions and media.
    """

    def _task(self) -> Task:
        return SupervisedTask(self.spec.encode, 'last')

    def _values(self, example: Example) -> dict[str, Any]:
        whole = _whole(self.spec, example, 0)
        return {'input_ids': whole.ids, 'labels': _labels(whole), **whole.media}

    def _batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        labels = pad_sequence([sample['labels'] for sample in samples], True, IGNORE_INDEX)
        return {**_padded_right(self.spec, [sample.example for sample in samples]), 'labels': labels}


class UnmatchedSupervisedDataset(_Rows):
    """The prompt of each row with the answer of the next one, what KTO estimates its divergence with.

    A sample has `input_ids` and `response_lens`, the tokens of the answer with the one that ends it. A batch is what
    the model takes, padded on the right, with `labels` None; `meta_info['response_lens']` is not for the model.
    """

    def _task(self) -> Task:
        return UnmatchedTask(self.spec.encode)

    def _values(self, example: Example) -> dict[str, Any]:
        whole = _whole(self.spec, example, 0)
        return {'input_ids': whole.ids, 'response_lens': example.responses[0].units, **whole.media}

    def _batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        arguments = _padded_right(self.spec, [sample.example for sample in samples])
        lengths = [sample['response_lens'] for sample in samples]
        return {**arguments, 'labels': None, 'meta_info': {'response_lens': lengths}}


class PreferenceDataset(_Rows):
    """Prompts with a better and a worse answer.

    A sample has `better_input_ids` and `worse_input_ids`, `better_response_lens` and `worse_response_lens`, the tokens
    of each answer with the one that ends it. A batch is what the model takes, the better rows first and then the worse
    ones in the same order, `(2 * samples, longest)`, padded on the tokenizer's `padding_side`;
    `meta_info['response_lens']`, of each row, is not for the model.
    """

    def _task(self) -> Task:
        return PreferenceTask(self.spec.encode_group, 'last')

    def _values(self, example: Example) -> dict[str, Any]:
        better, worse = (_whole(self.spec, example, number) for number in range(2))
        lengths = [response.units for response in example.responses]
        return {
            'better_input_ids': better.ids,
            'worse_input_ids': worse.ids,
            'better_response_lens': lengths[0],
            'worse_response_lens': lengths[1],
            **better.media,
        }

    def _batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        examples = [
            Example(sample.example.prompt, [sample.example.responses[number]])
            for number in range(2)
            for sample in samples
        ]
        pads = _padded_left if self.spec.tokenizer.padding_side == 'left' else _padded_right
        lengths = [sample[f'{which}_response_lens'] for which in ('better', 'worse') for sample in samples]
        return {**pads(self.spec, examples), 'meta_info': {'response_lens': lengths}}


class SafetyPreferenceDataset(PreferenceDataset):
    """Preferences of which either answer is safe or not, for a cost model: the more harmful answer is the better one.

    Samples, and `meta_info` of batches, also have `is_better_safe` and `is_worse_safe`.
    """

    def _task(self) -> Task:
        return PreferenceTask(self.spec.encode_group, 'last', SAFETY, judged=True)

    def _values(self, example: Example) -> dict[str, Any]:
        return {**super()._values(example), **{key: example.meta[key] for key in SAFETY}}

    def _batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        batch = super()._batch(samples)
        return {**batch, 'meta_info': {**batch['meta_info'], **{key: [one[key] for one in samples] for key in SAFETY}}}


class PromptOnlyDataset(_Rows):
    """Prompts to answer, with the generation prompt.

    A sample has `input_ids` and the tensors of its media. A batch is what `model.generate(**batch)` takes:
    `input_ids` and `attention_mask`, `(samples, longest)`, padded on the left, and media. What the answers are judged
    by is in `sample.example.meta`.
    """

    def _task(self) -> Task:
        return PromptTask(self.spec.encode_prompt, self.spec.max_length)

    def _values(self, example: Example) -> dict[str, Any]:
        return {'input_ids': example.prompt.ids, **example.prompt.media}

    def _batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        return self.spec.generation_inputs([sample.example.prompt for sample in samples])


def _whole(spec: FamilySpec, example: Example, number: int) -> Piece:
    """The prompt of an Example with one of its responses."""
    return join([example.prompt, example.responses[number]], spec.merge_media)


def _labels(piece: Piece) -> Tensor:
    return piece.ids.masked_fill(piece.weights == 0, IGNORE_INDEX)


def _padded_right(spec: FamilySpec, examples: Sequence[Example]) -> dict[str, Any]:
    """The arguments of the model for Examples of one response each."""
    return dict(TokenCollator(spec, 'padded', tuple(sorted(spec.continuous)))(examples).inputs.arguments)


def _padded_left(spec: FamilySpec, examples: Sequence[Example]) -> dict[str, Any]:
    """The same with the padding in front."""
    arguments = spec.generation_inputs([_whole(spec, example, 0) for example in examples])
    if spec.position_rows > 1:
        # The model's own class finds them by the mask.
        return arguments
    return {**arguments, 'position_ids': (arguments['attention_mask'].cumsum(-1) - 1).clamp(min=0)}
