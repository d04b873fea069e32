"""Runs whose micro-batches are filled by tokens."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from functools import reduce

import pytest
import torch

from align_anything.algorithms.dpo import DPO
from align_anything.algorithms.sft import SFT
from align_anything.core.types import Cost, Example, Piece
from align_anything.models.architecture import skeleton
from align_anything.models.pretrained_model import load_spec
from align_anything.models.work import Span, tower_spans, work_of_model
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import LAYOUTS
from align_anything.policies.token.plan import work_of
from align_anything.trainers.launch import settings_of
from align_anything.trainers.runs.assembly import make_collator
from align_anything.trainers.runs.data import (
    make_dataset,
    open_sources,
    row_costs,
    training_loader,
    training_sampler,
)
from align_anything.trainers.runs.settings import spec_of
from tests.policies.stub import TextFamily
from tests.trainers.runs import IMAGE, TEXT, lines, run, sft, succeed, text_rows, weights, write_rows


def test_the_same_weights_on_one_rank_and_on_two(tiny, tmp_path):
    """A step of two micro-batches holds the same rows whoever computes them, so the token mean is the same."""
    rows = write_rows(tmp_path / 'rows.jsonl', [*text_rows(30), {'instruction': 'no answer', 'output': ''}])
    common = {'max_length_per_batch': 120, 'max_skipped_ratio': 0.1, 'num_workers': 1}
    succeed(sft(tmp_path / 'one', tiny('llama'), rows, gradient_accumulation_steps=2, **common))
    succeed(sft(tmp_path / 'two', tiny('llama'), rows, ds_cfgs='ds_z2_config.json', **common), ranks=2)
    one, two = (lines(tmp_path / name / 'metrics.jsonl') for name in ('one', 'two'))
    assert len(one) == len(two) > 3
    assert sum(record['train/samples'] for record in one) == 30
    for first, second in zip(one, two, strict=True):
        assert first['train/tokens'] == second['train/tokens'] <= 240
        assert first['train/loss'] == pytest.approx(second['train/loss'], rel=1e-4)
    trained = weights(tmp_path / 'two' / 'slice_end')
    for name, tensor in weights(tmp_path / 'one' / 'slice_end').items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=1e-4)
    assert [record['reason'] for record in lines(tmp_path / 'two' / 'skipped_samples.jsonl')] != []


def test_images_count_with_the_tower_that_reads_them(tiny, tmp_path):
    from PIL import Image

    Image.new('RGB', (56, 56), 'red').save(tmp_path / 'red.png')
    pictured = [{'instruction': f'{number} <image>', 'output': 'red', 'images': 'red.png'} for number in range(6)]
    rows = write_rows(tmp_path / 'rows.jsonl', [*pictured, *({**row, 'images': None} for row in text_rows(6))])
    argv = sft(tmp_path / 'run', tiny('llava'), rows, max_length_per_batch=100, ds_cfgs='ds_z3_config.json')
    succeed([*argv, '--train_template_kwargs.images', 'images'], ranks=2, pair=IMAGE)
    assert sum(record['train/samples'] for record in lines(tmp_path / 'run' / 'metrics.jsonl')) == 12


def test_positions_of_the_towers(tiny):
    # three images of 28 x 42 pixels in patches of 14: 3 x 2 x 3; two cut by the processor; an audio clip of 10 frames
    media = {
        'pixel_values': torch.zeros(3, 3, 28, 42),
        'pixel_values_videos': torch.zeros(8, 588),
        'video_grid_thw': torch.tensor([[2, 2, 2]]),
        'input_features': torch.zeros(1, 32, 10),
    }
    spec = load_spec(str(tiny('llava')), model_max_length=512)
    assert tower_spans(media, spec) == ([*3 * [Span(6)], Span(4), Span(4)], [Span(5)])


def test_of_experts_those_count_that_a_token_goes_through(tiny):
    spec = load_spec(str(tiny('qwen3_omni_moe_thinker')), model_max_length=512)

    def weights() -> float:
        return work_of_model(skeleton(spec.config), spec, recomputes=0.0).stacks['language_model'].weights

    chosen = weights()
    spec.config.get_text_config().num_experts_per_tok = spec.config.get_text_config().num_experts
    assert weights() > 1.1 * chosen


@pytest.mark.parametrize(
    ('settings', 'language', 'vision'),
    [
        ({'freeze_vision_tower': False}, 3, 3),
        ({'freeze_vision_tower': False, 'gradient_checkpointing': True}, 4, 4),
        ({'freeze_vision_tower': True, 'gradient_checkpointing': True}, 4, 1),
        ({'use_lora': True}, 2, 1),
        ({'use_lora': True, 'vision_lora': True}, 2, 2),
    ],
)
def test_what_is_frozen_or_adapted_is_known_to_the_estimate(tiny, tmp_path, settings, language, vision):
    """Of a matrix: forward, the gradient of its input, that of itself, and forward again."""
    argv = sft(tmp_path, tiny('llava'), write_rows(tmp_path / 'rows.jsonl', text_rows(1)), **settings)
    cfgs = settings_of(IMAGE, SFT, argv, {}).cfgs
    stacks = work_of(spec_of(cfgs), cfgs).work.stacks
    for name, products in (('language_model', language), ('vision_tower', vision)):
        once, found = stacks[name].weights * 10, replace(stacks[name], attention={}, inner=stacks[name].weights)
        flops = found.flops((), positions=10)
        assert flops.forward == once and flops.model + flops.again == products * once


def test_settings_that_contradict_each_other_are_refused(tiny, tmp_path):
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(2))
    argv = sft(tmp_path / 'run', tiny('llama'), rows, group_by_length=True, train_mixing='round_robin')
    output = run([*argv, '--train_weights', '[1]'])[0].output
    assert 'max_length_per_batch' in output and 'train_weights mixes by weight' in output


in_each_layout = pytest.mark.parametrize('layout', LAYOUTS)


def tokens(length: int, weight: float = 1.0) -> Piece:
    return Piece(torch.ones(length, dtype=torch.long), torch.full((length,), weight))


def compared(kind: str, prompt: int, *responses: int) -> Example:
    """An Example of a kind of data: the last response is one of another row where such are compared."""
    *own, last = map(tokens, responses)
    if kind == 'unpaired':
        return Example(tokens(prompt, 0.0), own, unmatched=last)
    return Example(tokens(prompt, 0.0), own if kind == 'supervised' else [*own, last])


@in_each_layout
@pytest.mark.parametrize('kind', ['supervised', 'preference', 'unpaired'])
def test_what_bins_count_is_what_is_computed(kind: str, layout: str) -> None:
    collate, generator = TokenCollator(TextFamily(), layout), random.Random(0)
    for count in (1, 2, 5):
        examples = [compared(kind, *(generator.randint(1, 30) for _ in range(3))) for _ in range(count)]
        costs = [collate.cost(example) for example in examples]
        assert pickle.loads(pickle.dumps(costs)) == costs
        batch = collate(examples)
        computed = max(batch.stats['tokens'], batch.unmatched.stats['tokens'] if batch.unmatched else 0)
        assert reduce(Cost.beside, costs).size == collate.size(examples) == computed
        assert reduce(Cost.beside, costs).work == sum(map(len, examples))


def test_a_prompt_counts_as_often_as_the_layout_repeats_it() -> None:
    pair, longer = compared('preference', 100, 10, 10), compared('preference', 100, 10, 20)
    sizes = {name: TokenCollator(TextFamily(), name).cost(pair).size for name in LAYOUTS}
    assert sizes == {'padded': 220, 'packed': 220, 'shared_prefix': 120}
    assert TokenCollator(TextFamily(), 'padded').size([pair, longer]) == 480


@in_each_layout
def test_micro_batches_of_preferences_compute_no_more_than_the_budget(layout: str, tiny, tmp_path) -> None:
    rows = [
        {'prompt': row['instruction'], 'chosen': row['output'], 'rejected': f'no {row["output"]} at all'}
        for row in text_rows(60)
    ]
    argv = sft(
        tmp_path / 'run', tiny('llama'), write_rows(tmp_path / 'rows.jsonl', rows), template='Preference',
        max_length_per_batch=400, group_by_length=True, layout=layout,
    )  # fmt: skip
    resolved = settings_of(TEXT, DPO, argv, {})
    cfgs, sources, spec = resolved.cfgs, open_sources(resolved.cfgs).training, spec_of(resolved.cfgs)
    dataset = make_dataset(sources, TEXT, spec, resolved.algorithm, 'all_assistant')
    collate = make_collator(cfgs, spec, TEXT, resolved.algorithm)
    costs, _ = row_costs(dataset, collate, cfgs)
    sampler = training_sampler(sources, dataset, collate, cfgs, costs)
    taken = [batch.stats for batch in training_loader(dataset, sampler, collate, cfgs).micro_batches(0)]
    assert sum(stats['examples'] for stats in taken) == 60 and len(taken) > 3
    assert all(stats['tokens'] <= 400 for stats in taken)
    # The last one holds what is left.
    assert sum(stats['tokens'] for stats in taken[:-1]) > 0.8 * 400 * (len(taken) - 1)
