"""Rows whose answers are pictures, by each way that rows may bring them, in whole runs of a model that draws."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from align_anything.algorithms.dpo import DPO
from align_anything.algorithms.sft import SFT
from align_anything.models.codecs.base import CodecRules, codec_rules
from align_anything.models.pretrained_model import load_spec
from align_anything.testing.emitting import write_digit_rows
from align_anything.testing.tiny.tokenizers import make_tokenizer
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.data import make_dataset, open_sources
from tests.trainers.runs import lines, run, sft, succeed, write_rows

DRAWING = PAIRS['text_to_image']
JANUS = ['<begin_of_image>', '<|User|>', '<|Assistant|>']


@pytest.fixture(scope='module')
def model(emitting: Callable[..., Path]) -> Path:
    return emitting('drawing')


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with pictures as files: `question`, `picture`, `rejected`, `messages`."""
    return write_digit_rows(tmp_path_factory.mktemp('digits'), 4)


@pytest.fixture(scope='module')
def rules(model: Path) -> CodecRules:
    return codec_rules(next(path.parent for path in model.rglob('config.json') if path.parent != model))


@pytest.fixture(scope='module')
def coded(rules: CodecRules, rows: Path) -> list[tuple[str, torch.Tensor]]:
    """What each row asks for, and the codes of its picture."""
    digits = [json.loads(line) for line in rows.read_text().splitlines()]
    pictures = [Image.open(rows.parent / row['picture']).convert('RGB') for row in digits]
    return list(zip((row['question'] for row in digits), rules.open().encode(pictures), strict=True))


@pytest.fixture(scope='module')
def settings(rules: CodecRules, rows: Path, coded: list, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same four pictures as files twice, as codes, and as ids of another tokenizer; and one that does not fit."""
    folder = tmp_path_factory.mktemp('sources')
    bring = [{'text': text, 'image': {'codes': codes.tolist(), 'codec': rules.fingerprint}} for text, codes in coded]
    bring.append({'text': 'draw the digit two', 'image': {'codes': [[1, 2], [3, 4]]}})
    tokenizer = make_tokenizer(300, (), pad='<pad>', eos='</s>', bos='<s>', extra=JANUS)
    tokenizer.save_pretrained(folder / 'tokenizer')
    prompts = [tokenizer.encode(f'<|User|>: {text}\n\n<|Assistant|>:<begin_of_image>') for text, _ in coded]
    ids = [torch.tensor([*prompt, *codes.flatten()]) for prompt, (_, codes) in zip(prompts, coded, strict=True)]
    torch.save([{'input_ids': row} for row in ids], folder / 'ids.pt')
    mapped = '{answers: image, prompt: question, response: picture}'
    return {
        'train_datasets': f'[{rows}, {rows}, {write_rows(folder / "coded.jsonl", bring)}, {folder / "ids.pt"}]',
        'train_template': '[Instruction, Messages, Instruction, Tokenized]',
        'train_template_kwargs': f'[{mapped}, {{images: ""}}, {{answers: image}}, {{tokenizer: {folder}/tokenizer}}]',
        'max_skipped_ratio': 0.5,
    }


def test_codes_of_rows_are_written_as_they_are(
    model: Path, rows: Path, settings: dict[str, Any], coded: list, tmp_path: Path
) -> None:
    argv = sft(tmp_path / 'run', model, rows, **settings)
    sources = open_sources(settings_of(DRAWING, SFT, argv, {}).cfgs)
    spec = load_spec(str(model), model_max_length=128)
    dataset = make_dataset(sources.training, DRAWING, spec, SFT(), 'all_assistant')
    by_codes, by_ids = ([dataset[first + number] for number in range(4)] for first in (8, 13))
    for one, other, (_, codes) in zip(by_codes, by_ids, coded, strict=True):
        written = spec.codes.kinds['image'].written(codes)[0].tolist()
        ids = one.responses[0].ids.tolist()
        assert any(ids[at : at + len(written)] == written for at in range(len(ids)))
        assert torch.equal(one.responses[0].ids, other.responses[0].ids) and torch.equal(
            one.prompt.ids, other.prompt.ids
        )


def test_a_run_learns_from_files_messages_codes_and_token_ids(
    model: Path, rows: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    succeed(sft(tmp_path / 'run', model, rows, **settings), pair=DRAWING)
    records = lines(tmp_path / 'run' / 'metrics.jsonl')
    assert sum(record['train/samples'] for record in records) == 16
    (skipped,) = lines(tmp_path / 'run' / 'skipped_samples.jsonl')
    assert skipped['source'].endswith('coded.jsonl:5') and 'but the model writes' in skipped['reason']


def test_pairs_of_pictures_are_preferences(model: Path, rows: Path, tmp_path: Path) -> None:
    mapped = '{answers: image, prompt: question, chosen: picture}'
    argv = sft(tmp_path / 'run', model, rows, template='Preference', train_template_kwargs=mapped)
    (ended,) = run(argv, pair=DRAWING, algorithm=DPO)
    assert ended.code == 0, ended.output
    assert sum(record['train/samples'] for record in lines(tmp_path / 'run' / 'metrics.jsonl')) == 4


def test_captioned_pictures_need_no_template(model: Path, rows: Path, tmp_path: Path) -> None:
    """The same pictures with captions beside them, twice, and in a tar shard."""
    folder, shard = tmp_path / 'pictures', tmp_path / 'shard.tar'
    (folder / '2_digits').mkdir(parents=True)
    for number, row in enumerate(map(json.loads, rows.read_text().splitlines())):
        shutil.copy(rows.parent / row['picture'], folder / '2_digits' / f'{number}.png')
        (folder / '2_digits' / f'{number}.txt').write_text(row['question'])
    with tarfile.open(shard, 'w') as archive:
        archive.add(folder / '2_digits', '')
    argv = sft(tmp_path / 'run', model, rows, template='null', train_datasets=f'[{folder}, {shard}]')
    output = succeed(argv, pair=DRAWING)
    assert sum(record['train/samples'] for record in lines(tmp_path / 'run' / 'metrics.jsonl')) == 8 + 4
    assert f"'{shard}' has no template, and the columns of Instruction {{answers: image}}" in output
