"""Which rows lose their prompt hangs on seed, epoch and row alone, and they lose nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.core.types import Example
from align_anything.datasets.dataset import Emptied
from align_anything.datasets.prompt_dropout import PromptDropout
from align_anything.datasets.prompts import PromptTask
from align_anything.datasets.sampler import BatchShape
from tests.datasets import fakes
from tests.datasets.test_sampler import CUTS, samplers


def emptied(sampler: PromptDropout, epoch: int, start: int = 0) -> list[tuple[str, bool]]:
    """The rows that a rank reads, and whether they are emptied."""
    rows = [row for batch in sampler.micro_batches(epoch, start) for row in batch]
    read = [(row.row, True) if isinstance(row, Emptied) else (row, False) for row in rows]
    return [(str(row if type(row) is int else row.row['number']), empty) for row, empty in read]


@pytest.mark.parametrize('kind', ['index', 'stream'])
@pytest.mark.parametrize('shape', CUTS)
def test_ranks_and_resumed_runs_agree(kind: str, shape: tuple[int, int, int]) -> None:
    whole = [PromptDropout(sampler, 0.4, seed=7) for sampler in samplers(*shape, kind)]
    (alone,) = (PromptDropout(sampler, 0.4, seed=7) for sampler in samplers(8, 1, 1, kind))
    for epoch in range(2):
        assert sorted(pair for sampler in whole for pair in emptied(sampler, epoch)) == sorted(emptied(alone, epoch))
        assert [pair for sampler in whole for pair in emptied(sampler, epoch, 1)] == [
            pair for sampler in whole for pair in emptied(sampler, epoch)[-len(emptied(sampler, epoch, 1)) :]
        ]
    assert dict(emptied(alone, 0)) != dict(emptied(alone, 1))
    (other,) = (PromptDropout(sampler, 0.4, seed=8) for sampler in samplers(8, 1, 1, kind))
    assert dict(emptied(other, 0)) != dict(emptied(alone, 0))


def test_so_many_rows_are_emptied_as_the_setting_says() -> None:
    for probability in (0.0, 0.1, 1.0):
        (sampler,) = (PromptDropout(one, probability, seed=0) for one in samplers(8, 1, 1, 'index', size=4000))
        share = sum(empty for _, empty in emptied(sampler, 0)) / 4000
        assert share == pytest.approx(probability, abs=0.02 if 0 < probability < 1 else 0.0)
        assert sampler.shape == BatchShape(8) and sampler.steps_in(0) == 500


def test_an_emptied_row_is_one_whose_prompt_says_nothing(tmp_path: Path) -> None:
    file = fakes.write_rows(tmp_path / 'rows.jsonl', [{'instruction': 'Draw a cat', 'output': 'Here'}])
    dataset = fakes.make_dataset(file, 'Instruction')
    for index, text in ((0, 'Draw a cat|Here'), (Emptied(0), '|Here'), (0, 'Draw a cat|Here')):
        example = dataset[index]
        assert isinstance(example, Example) and example.source.endswith('rows.jsonl:1')
        assert ''.join(map(chr, example.responses[0].ids.tolist())) == text


@pytest.mark.parametrize('guided', [False, True])
def test_a_prompt_to_guide_has_its_unconditional_form(guided: bool) -> None:
    asked = [{'role': 'user', 'content': [{'type': 'text', 'text': 'Draw a cat'}]}]

    def encode(conversation):
        return fakes.encode(conversation).prompt if conversation[0]['content'][0]['text'] else 'nothing'

    example = PromptTask(encode, 100, guided=guided).encode([asked])
    assert example.unconditional == ('nothing' if guided else None) and example.conversation is asked
