"""How likely a checkpoint finds held-out answers, and whether it tells them from those of other rows.

python evaluate.py --model output/slice_end --rows held_out.jsonl --template Captioning --choice
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
import yaml

from align_anything.configs.schema import DataCfgs
from align_anything.core.errors import AlignAnythingError, DataError
from align_anything.core.types import Conversation, Example, Skipped
from align_anything.datasets.dataset import ExampleDataset, Formatted
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.source_loading import load_sources
from align_anything.models.any_model import AnyModel
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.trainers.runs.data import media_options

PAIR = 'any_to_text'


@dataclass(frozen=True)
class ChoiceTask:
    """The last answer of a row, and beside it that of another row to the same prompt.

    Attributes:
        encode_group: `FamilySpec.encode_group`.
        needs_other: whether there is a choice; else the row's own answer stands alone.
    """

    encode_group: Callable[..., Example]
    needs_other: bool
    needs_reply: ClassVar[bool] = True

    def format(self, formatter: BaseFormatter, row: dict[str, Any], other: dict[str, Any] | None = None) -> Formatted:
        """Returns the row's conversation, then the one that ends as the other row does."""
        own, meta = formatter.format_supervised_sample(row)
        if other is None:
            return [own], meta
        return [own, formatter.format_unmatched_supervised_sample(row, other)[0]], meta

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns the Example of the answers, media decoded."""
        last = min(map(len, conversations)) - 1
        return self.encode_group(conversations, 'last', start=last)


def evaluate(spec: FamilySpec, policy: TokenPolicy, rows: ExampleDataset, batch_size: int) -> dict[str, float]:
    """Returns `loss`, the mean negative log-probability of a token of the answers, and `rows` and `skipped`.

    With a choice also `choice_accuracy`, how often the mean log-probability of the row's own answer is the higher one;
    chance is 0.5. Raises DataError where no row can be used.
    """
    total, tokens, right, found, skipped = 0.0, 0, 0, 0, list[Skipped]()
    collate, device = TokenCollator(spec, 'padded', tuple(sorted(spec.reads))), next(policy.parameters()).device
    waiting = iter(usable(rows, skipped))
    while examples := list(islice(waiting, batch_size)):
        batch = collate(examples).to(device)
        with torch.no_grad():
            values = policy(batch).values
        answers = iter([one.double().cpu() for one in batch.by_response(values)])
        for example in examples:
            own, *others = islice(answers, len(example.responses))
            total, tokens, found = total - float(own.sum()), tokens + len(own), found + 1
            right += all(own.mean() > other.mean() for other in others)
    if not found:
        raise DataError(f'none of the rows can be used: {skipped[0].reason if skipped else "there are none"}')
    measured = {'loss': total / tokens, 'rows': found, 'skipped': len(skipped)}
    return measured | ({'choice_accuracy': right / found} if rows.task.needs_other else {})


def usable(rows: ExampleDataset, skipped: list[Skipped]) -> Iterable[Example]:
    """Yields the rows that can be used, and puts the others into `skipped`."""
    for index in range(len(rows)):
        row = rows[index]
        if isinstance(row, Skipped):
            skipped.append(row)
        else:
            yield row


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the measures as one line of JSON."""
    parser = argparse.ArgumentParser(description='Measures a checkpoint on held-out rows.')
    parser.add_argument('--model', required=True, help='the checkpoint, a folder such as slice_end')
    parser.add_argument('--rows', required=True, help='a file, a folder or a hub name, as train_datasets')
    parser.add_argument('--template', required=True, help='how rows become conversations, as train_template')
    parser.add_argument('--template_kwargs', default='{}', help='its options, as train_template_kwargs')
    parser.add_argument('--split', help='as train_split')
    parser.add_argument('--size', type=int, help='only the first so many rows')
    parser.add_argument('--choice', action='store_true', help="compare each answer with another row's")
    parser.add_argument('--batch_size', type=int, default=8)
    given = parser.parse_args(argv)
    kwargs = yaml.safe_load(given.template_kwargs)
    if not isinstance(kwargs, Mapping):
        parser.error('--template_kwargs must be a mapping, such as {videos: video_embed}')
    try:
        spec = load_spec(given.model)
        sources = load_sources(
            given.rows,
            given.template,
            template_kwargs=kwargs,
            split=given.split,
            size=given.size,
            media_options=media_options(DataCfgs()),
        )
        rate = {'rate': spec.audio_rate}
        task = ChoiceTask(spec.encode_group, given.choice)
        rows = ExampleDataset(sources, task, PAIR, spec.reads, {'audio': rate, 'video': rate})
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        dtype = torch.bfloat16 if device == 'cuda' else torch.float32
        model = AnyModel.from_pretrained(given.model, dtype=dtype).to(device).eval()
        policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=dtype)
        print(json.dumps(evaluate(spec, policy, rows, given.batch_size)))
    except AlignAnythingError as error:
        parser.exit(2, f'{error}\n')


if __name__ == '__main__':
    main(sys.argv[1:])
