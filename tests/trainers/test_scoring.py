"""A trained reward model scores as plain transformers does, in the order of the rows, on any number of ranks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.rm import RM
from align_anything.algorithms.rm_score import OBEYED, RMScore
from align_anything.configs.resolve import resolve
from align_anything.core.errors import DataError, ModelError, SettingsError
from align_anything.models.any_model import AnyModelForScore
from align_anything.models.pretrained_model import load_spec
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token import attention
from align_anything.trainers.runs.scoring import (
    in_order,
    pair_summary,
    require_head,
    summary,
    write_scores,
)
from tests.invariants.test_fallback import causal_over_the_row, only_in_rows
from tests.trainers.runs import IMAGE, TEXT, lines, sft, succeed, text_rows, write_rows
from tests.trainers.test_kept_features import count, epochs
from tests.trainers.test_reference import pairs
from tests.trainers.test_settings_read import record

ROWS = 5
Tiny = Callable[..., Path]


def with_head(source: Path, out: Path) -> Path:
    """Writes a reward model: the checkpoint with a head whose scores lie apart."""
    model = AnyModelForScore.from_pretrained(source)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(3))
    shutil.copytree(source, out, dirs_exist_ok=True)
    state = load_file(source / 'model.safetensors')
    save_file({**state, 'score.weight': model.score.weight.data}, out / 'model.safetensors', {'format': 'pt'})
    return out


@pytest.fixture(scope='module')
def rewards(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_head(tiny('llama'), tmp_path_factory.mktemp('rewards'))


def argv(out: Path, model: Path, rows: Path, template: str = 'Preference', **settings: Any) -> list[str]:
    values = {
        'model_name_or_path': model, 'train_datasets': rows, 'train_template': template, 'output_dir': out,
        'bf16': False, 'model_max_length': 128, 'num_workers': 0, 'per_device_eval_batch_size': 2, **settings,
    }  # fmt: skip
    return [word for key, value in values.items() for word in (f'--{key}', str(value))]


def turns(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': answer}]


def plain(folder: Path, conversations: list[list[dict[str, str]]]) -> list[float]:
    """What transformers' sequence classifier gives to each conversation alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    renderer = load_spec(folder).renderer
    tokenizer.chat_template = renderer.template
    found = []
    with torch.no_grad():
        for conversation in conversations:
            ids = tokenizer.apply_chat_template(conversation, return_dict=True, return_tensors='pt')['input_ids']
            # What the template writes behind the end of the answer is not part of it.
            last = int((ids[0] == renderer.end_of_turn_id).nonzero()[-1])
            found.append(float(model(ids[:, : last + 1]).logits))
    return found


def test_pairs_have_the_scores_of_a_plain_classifier_on_one_rank_and_on_two(rewards: Path, tmp_path: Path) -> None:
    rows = pairs(ROWS)
    data = [*rows[:2], {**rows[2], 'prompt': None}, *rows[3:]]
    file = write_rows(tmp_path / 'rows.jsonl', data)
    settings = {'max_skipped_ratio': 0.5}
    note = record(tmp_path / 'read.json')
    succeed(argv(tmp_path / 'one', rewards, file, **settings), before=note, algorithm=RMScore)
    succeed(argv(tmp_path / 'two', rewards, file, **settings), ranks=2, algorithm=RMScore)

    found = lines(tmp_path / 'one' / 'scores.jsonl')
    used = [0, 1, 3, 4]
    assert [item['source'] for item in found] == [f'{file}:{number + 1}' for number in used]
    asked = [turns(rows[number]['prompt'], rows[number][kind]) for number in used for kind in ('chosen', 'rejected')]
    scores = [value for item in found for value in item['scores']]
    assert scores == pytest.approx(plain(rewards, asked), abs=1e-4) and np.ptp(scores) > 0.1
    ranks = [value for item in found for value in item['ranks']]
    assert ranks == [1 + sum(other > value for other in scores) for value in scores]
    assert all(item['is_pair'] for item in found)

    told = json.loads((tmp_path / 'one' / 'summary.json').read_text())
    wins = [better > worse for better, worse in (item['scores'] for item in found)]
    assert told['answers'] == 8 and told['pairs'] == 4 and told['accuracy'] == sum(wins) / 4
    assert told['mean'] == pytest.approx(sum(scores) / 8)
    with Image.open(tmp_path / 'one' / 'histogram.png') as picture:
        assert picture.width > picture.height > 100
    [skipped] = lines(tmp_path / 'one' / 'skipped_samples.jsonl')
    assert skipped['source'] == f'{file}:3'

    assert (tmp_path / 'two' / 'skipped_samples.jsonl').read_text() == json.dumps(skipped) + '\n'
    for one, two in zip(found, lines(tmp_path / 'two' / 'scores.jsonl'), strict=True):
        assert {**two, 'scores': None} == {**one, 'scores': None}
        assert two['scores'] == pytest.approx(one['scores'], abs=1e-5)

    obeyed = {f'{group}.{key}' for group, keys in OBEYED.items() for key in keys}
    assert sorted(obeyed - set(json.loads((tmp_path / 'read.json').read_text()))) == []


def test_single_answers_have_no_pairs_and_a_wrong_layout_falls_back(
    rewards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = text_rows(3)
    file = write_rows(tmp_path / 'rows.jsonl', rows)
    monkeypatch.setattr(attention, 'segment_attention', only_in_rows(causal_over_the_row))

    def before(rank: int) -> None:
        inner = ScorePolicy.check

        def watched(self: ScorePolicy, *given: Any) -> None:
            inner(self, *given)
            (tmp_path / 'force').write_text(f'{self.collate.layout} {self.model.config._attn_implementation}')

        ScorePolicy.check = watched

    succeed(argv(tmp_path / 'out', rewards, file, 'Instruction'), before=before, algorithm=RMScore)
    assert (tmp_path / 'force').read_text() == 'padded sdpa'
    found = lines(tmp_path / 'out' / 'scores.jsonl')
    expected = plain(rewards, [turns(row['instruction'], row['output']) for row in rows])
    assert [item['scores'] for item in found] == [[pytest.approx(value, abs=1e-4)] for value in expected]
    told = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert told['answers'] == 3 and 'pairs' not in told


@pytest.mark.extended
def test_an_adapter_scores_as_it_was_trained_and_towers_keep_features(tiny: Tiny, tmp_path: Path) -> None:
    data = []
    for number, row in enumerate(pairs(2)):
        Image.new('RGB', (40 + 8 * number, 60), (50 * number, 80, 90)).save(tmp_path / f'{number}.png')
        data.append({**row, 'image': f'{number}.png'})
    rows = write_rows(tmp_path / 'rows.jsonl', data)
    trained = sft(tmp_path / 'rm', tiny('llava'), rows, template='Preference', use_lora=True, lora_dropout=0.0,
                  eval_datasets=rows, eval_template='Preference', eval_strategy='epoch')  # fmt: skip
    succeed(trained, pair=IMAGE, algorithm=RM)
    features = {'feature_cache_dir': tmp_path / 'features'}
    for name, runs in (('first', 3), ('second', 0)):
        options = argv(tmp_path / name, tmp_path / 'rm' / 'slice_end', rows, **features)
        succeed(options, pair=IMAGE, before=count(tmp_path / f'{name}-count'), algorithm=RMScore)
        assert sum(map(sum, epochs(tmp_path / f'{name}-count', 0))) == runs
    told = json.loads((tmp_path / 'first' / 'summary.json').read_text())
    measured = [item for item in lines(tmp_path / 'rm' / 'metrics.jsonl') if 'eval/reward_accuracy' in item][-1]
    assert told['accuracy'] == measured['eval/reward_accuracy']
    assert told['mean_margin'] == pytest.approx(measured['eval/reward_margin'], rel=1e-4)
    assert lines(tmp_path / 'second' / 'scores.jsonl') == lines(tmp_path / 'first' / 'scores.jsonl')


def test_what_has_no_score_head_is_no_reward_model(tiny: Tiny, rewards: Path, tmp_path: Path) -> None:
    require_head(str(rewards))
    with pytest.raises(ModelError, match='has no score head'):
        require_head(str(tiny('llama')))

    def adapter(base: Path, saved: list[str] | None) -> str:
        settings = {'base_model_name_or_path': str(base), 'modules_to_save': saved}
        (tmp_path / 'adapter_config.json').write_text(json.dumps(settings))
        return str(tmp_path)

    require_head(adapter(tiny('llama'), ['score']))
    require_head(adapter(rewards, None))
    with pytest.raises(ModelError, match='has no score head'):
        require_head(adapter(tiny('llama'), None))


def test_settings_that_mean_nothing_here_are_refused_with_their_origin(tmp_path: Path) -> None:
    def check(**settings: Any) -> None:
        words = argv(tmp_path, tmp_path, tmp_path, **settings)
        resolve(TEXT.name, 'rm_score', RMScore, known_algorithms(), words, {})

    check(**{'train_template_kwargs.prompt': 'question', 'feature_cache_dir': tmp_path})
    wrong = {
        'epochs': 2, 'learning_rate': 1e-4, 'max_length_per_batch': 64, 'train_mixing': 'round_robin', 'use_lora': True,
        'save_interval': 1, 'log_type': 'none', 'streaming': True, 'max_steps': 1,
        'lr_groups.vision_tower': 0.1,
    }  # fmt: skip
    with pytest.raises(SettingsError) as raised:
        check(**wrong)
    assert len(raised.value.problems) == len(wrong)
    problems = sorted(raised.value.problems, key=lambda text: text.split('.')[1])
    for key, problem in zip(sorted(wrong), problems, strict=True):
        assert f'.{key.split(".")[0]} (' in problem and 'rm_score trains nothing' in problem


def test_records_stand_in_the_order_of_rows_with_ranks_among_all() -> None:
    class Rows:
        def __init__(self, name: str, number: int) -> None:
            self.name, self.number = name, number

        def __len__(self) -> int:
            return self.number

        def row_name(self, index: int) -> str:
            return f'{self.name}:{index}'

    dataset: Any = SimpleNamespace(sources=[SimpleNamespace(rows=Rows('a', 2)), SimpleNamespace(rows=Rows('b', 3))])
    given = [('b:2', [0.5]), ('a:1', [2.0, -1.0]), ('b:0', [0.5]), ('a:0', [1.0])]
    found = in_order([{'source': source, 'scores': scores, 'is_pair': False} for source, scores in given], dataset)
    assert [(item['source'], item['ranks']) for item in found] == [
        ('a:0', [2]), ('a:1', [1, 5]), ('b:0', [3]), ('b:2', [4]),
    ]  # fmt: skip


def test_the_summary_says_where_scores_lie() -> None:
    told = summary(np.arange(101.0))
    assert (told['answers'], told['min'], told['max'], told['mean']) == (101, 0, 100, 50)
    assert told['std'] == pytest.approx(math.sqrt((101**2 - 1) / 12))
    assert told['quantiles'] == {'0.05': 5, '0.25': 25, '0.5': 50, '0.75': 75, '0.95': 95}
    assert sum(told['histogram']['counts']) == 101 and len(told['histogram']['edges']) == 21


def test_calibration_is_the_distance_of_confidence_and_success() -> None:
    # The higher score has a probability of 0.75 in four pairs, of which one is wrong, and of 0.9 in one that is wrong.
    quarter, tenth = math.log(3), math.log(9)
    pairs_of = np.array([[quarter, 0.0], [quarter, 0.0], [1.0 + quarter, 1.0], [0.0, quarter], [0.0, tenth]])
    told = pair_summary(pairs_of)
    assert told['pairs'] == 5 and told['accuracy'] == pytest.approx(0.6)
    assert told['mean_margin'] == pytest.approx((2 * quarter - tenth) / 5)
    assert told['calibration_error'] == pytest.approx(4 / 5 * 0.0 + 1 / 5 * 0.9)
    wrong = pair_summary(np.array([[0.0, quarter], [0.0, quarter]]))
    assert wrong['calibration_error'] == pytest.approx(0.75) and wrong['accuracy'] == 0


def test_nothing_to_score_and_scores_that_are_no_numbers_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no row could be scored'):
        write_scores(tmp_path, [])
    with pytest.raises(ModelError, match=r'rows\.jsonl:1 the scores \[nan\]'):
        write_scores(tmp_path, [{'source': 'rows.jsonl:1', 'scores': [float('nan')], 'is_pair': False}])
    assert not list(tmp_path.iterdir())
