"""Whole runs with guidance: prompts dropped in supervision, guided rollouts and updates, and what is told by kind."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.cli.leaves import find_run
from align_anything.configs.online import OnlineModelCfgs
from align_anything.core.errors import SettingsError
from align_anything.datasets.dataset import Emptied
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.prompt_dropout import PromptDropout
from align_anything.datasets.sampler import BatchShape, IndexSampler
from align_anything.models.pretrained_model import load_spec
from align_anything.rollouts.hf import HFRollouts
from align_anything.testing.emitting import write_digit_rows
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.data import make_dataset, open_sources
from align_anything.trainers.runs.sampling import check_kinds, sampling_of
from tests.harness.pairwise import first_of
from tests.trainers.runs import lines, run, sft, succeed, weights
from tests.trainers.test_online import dies_in
from tests.trainers.test_resume import dies_in_step

DRAWING = PAIRS['text_to_image']
MAPPED = '{answers: image, prompt: question, response: picture}'
REWARD = """
def bright(completions):
    (part,) = completions[0].message['content']
    return [sum(item.message['content'][0]['image'].convert('L').tobytes()) / 16320 for item in completions]
"""


@pytest.fixture(scope='module')
def model(emitting: Callable[..., Path]) -> Path:
    return emitting('drawing')


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('digits')
    (folder / 'rewards.py').write_text(REWARD)
    return write_digit_rows(folder, 12)


def drawing(output: Path, model: Path, rows: Path, *more: str, **settings: Any) -> list[str]:
    return sft(output, model, rows, *more, train_template_kwargs=MAPPED, **settings)


def tokens_with_dropout(argv: list[str], epochs: int) -> int:
    """The tokens that a run reads, if the draws are those of the seed, the epoch and the row."""
    cfgs = settings_of(DRAWING, SFT, argv, {}).cfgs
    spec = load_spec(cfgs.model_cfgs.model_name_or_path, model_max_length=cfgs.model_cfgs.model_max_length)
    dataset = make_dataset(open_sources(cfgs).training, DRAWING, spec, SFT(), 'all_assistant')
    order = IndexSampler(Mixture(dataset.sizes, cfgs.train_cfgs.seed), BatchShape(len(dataset)))
    sampler = PromptDropout(order, cfgs.data_cfgs.prompt_dropout, cfgs.train_cfgs.seed)
    read = [row for epoch in range(epochs) for rows in sampler.micro_batches(epoch) for row in rows]
    assert {type(row) for row in read} == {int, Emptied} and len(read) == epochs * len(dataset)
    assert len(dataset[Emptied(0)]) < len(dataset[0])
    return sum(len(dataset[row]) for row in read)


def test_a_resumed_run_drops_the_same_prompts(model: Path, rows: Path, tmp_path: Path) -> None:
    """On any number of ranks: both see the draw of the row, not their own."""
    how = {'prompt_dropout': 0.5, 'epochs': 2, 'save_interval': 2, 'save_total_limit': 3, 'num_workers': 1}
    whole, broken = (tmp_path / name for name in ('whole', 'broken'))
    succeed(drawing(whole, model, rows, **how), 2, DRAWING)
    ended = run(drawing(broken, model, rows, **how), 2, DRAWING, before=dies_in_step(5))
    assert None in [item.code for item in ended] and (broken / 'slice_4').is_dir()
    succeed(drawing(broken, model, rows, '--resume', 'auto', **how), 2, DRAWING)
    expected, found = weights(whole / 'slice_end'), weights(broken / 'slice_end')
    assert expected and all(torch.equal(found[name], expected[name]) for name in expected)
    assert (whole / 'metrics.jsonl').read_text() == (broken / 'metrics.jsonl').read_text()
    records = lines(whole / 'metrics.jsonl')
    read = sum(record['train/tokens'] for record in records)
    assert read == tokens_with_dropout(drawing(whole, model, rows, **how), 2)
    for record in records:
        means = [record[f'train/loss/{kind}'] for kind in ('text', 'image')]
        assert min(means) <= record['train/loss'] <= max(means)


def watched(path: Path) -> Callable[[int], None]:
    """Writes down with which guidance, and how many responses to each prompt, was generated."""

    def before(rank: int) -> None:
        inner = HFRollouts._generate

        def noted(self, examples, call, sampling, tell):
            with path.open('a') as file:
                file.write(json.dumps([sampling.responses, sampling.guidance]) + '\n')
            return inner(self, examples, call, sampling, tell)

        HFRollouts._generate = noted

    return before


@pytest.mark.parametrize('stage', first_of([2, 3], 2))
def test_guided_rollouts_are_trained_on_as_they_were_sampled(
    model: Path, rows: Path, tmp_path: Path, stage: int
) -> None:
    argv = drawing(
        tmp_path / 'run',
        model,
        rows,
        guidance_scale=2.0,
        eval_guidance_scale=1.5,
        ds_cfgs=f'ds_z{stage}_config.json',
        reward_functions=f'[{rows.parent}/rewards.py:bright]',
        num_generations=2,
        per_device_prompt_batch_size=2,
        per_device_train_batch_size=4,
        max_new_tokens=20,
        beta=0.05,
        max_steps=2,
        eval_datasets=rows,
        eval_template='Instruction',
        eval_template_kwargs=MAPPED,
        eval_size=2,
        eval_strategy='steps',
        eval_interval=2,
    )
    seen = tmp_path / 'seen.jsonl'
    succeed(argv, 2, DRAWING, watched(seen), find_run('text_to_image', 'grpo')[1])
    assert {(responses, guidance) for responses, guidance in map(tuple, lines(seen))} == {(2, 2.0), (1, 1.5)}
    records = [record for record in lines(tmp_path / 'run' / 'metrics.jsonl') if 'train/reward' in record]
    assert len(records) == 2
    for record in records:
        assert record['train/rollout_drift'] < 1e-5 and record['train/reward'] > 0
        # One update on each rollout: the policy is still the one that sampled.
        assert record['train/ratio/image'] == record['train/ratio'] == pytest.approx(1.0, abs=1e-6)
        assert record['train/entropy/image'] == pytest.approx(record['train/entropy']) and record['train/entropy'] > 1
        assert record['train/kl/image'] == pytest.approx(record['train/kl'])
        # Where a response is a picture alone, no text is chosen.
        assert not any(name.endswith('/text') for name in record)
    assert records[0]['train/kl'] == pytest.approx(0.0, abs=1e-7) and records[1]['train/kl'] > 0


@pytest.mark.parametrize(
    ('pair', 'algorithm', 'words', 'said'),
    [
        ('text_to_text', 'grpo', '--guidance_scale 2', 'model_cfgs.guidance_scale.*writes text alone'),
        ('text_to_image', 'grpo', '--guidance_scale 2 --use_vllm True', 'vLLM samples from the model as it is'),
        ('text_to_image', 'grpo', '--eval_guidance_scale 2', 'it means nothing without data_cfgs.eval_datasets'),
        ('text_to_image', 'grpo', '--guidance_scale 0', 'must be greater than 0'),
        ('text_to_image', 'sft', '--guidance_scale 2', 'guidance_scale'),
        ('text_to_text', 'sft', '--prompt_dropout 0.1', 'data_cfgs.prompt_dropout.*writes text alone'),
        ('text_to_image', 'dpo', '--prompt_dropout 0.1', 'nothing but in supervised fine-tuning'),
        ('text_to_image', 'sft', '--prompt_dropout 1.5', 'must be less than or equal to 1'),
        ('text_to_text', 'grpo', '--emitted_advantage_weights "{text: 2}"', 'writes text alone'),
        ('text_to_image', 'grpo', '--emitted_advantage_weights "{picture: 2}"', 'emitted_advantage_weights'),
    ],
)
def test_what_cannot_have_an_effect_is_refused(pair: str, algorithm: str, words: str, said: str) -> None:
    needed = '--model_name_or_path m --train_datasets d --train_template t --output_dir o'
    argv = shlex.split(f'{needed} {words}')
    with pytest.raises(SettingsError, match=f'(?s){said}'):
        settings_of(PAIRS[pair], SFT if algorithm == 'sft' else find_run(pair, algorithm)[1], argv, {})


def test_what_the_model_cannot_do_is_refused(model: Path) -> None:
    spec = load_spec(str(model), model_max_length=128)
    guided = OnlineModelCfgs(guidance_scale=2.0, max_new_tokens=32)
    with pytest.raises(SettingsError, match='scores codes over the whole vocabulary'):
        sampling_of(guided, DRAWING, spec)
    spec.codes = replace(spec.codes, restricted=True)
    assert sampling_of(guided, DRAWING, spec).guidance == 2.0
    with pytest.raises(
        SettingsError, match=r'emitted_advantage_weights.text: no unit of a response is text, but image'
    ):
        check_kinds('train_cfgs.emitted_advantage_weights', {'text'}, sampling_of(guided, DRAWING, spec))
    check_kinds('w', {'text', 'image'}, sampling_of(guided, PAIRS['text_image_to_text_image'], spec))
    spec.softcap = 30.0
    for cfgs in (guided, OnlineModelCfgs(eval_guidance_scale=2.0, max_new_tokens=32)):
        with pytest.raises(SettingsError, match='cap their logits'):
            sampling_of(cfgs, DRAWING, spec)
    sampling_of(OnlineModelCfgs(max_new_tokens=32), DRAWING, spec)


@pytest.mark.extended
def test_a_killed_guided_run_samples_what_it_would_have_sampled(model: Path, rows: Path, tmp_path: Path) -> None:
    how = {
        'guidance_scale': 2.0,
        'reward_functions': f'[{rows.parent}/rewards.py:bright]',
        'num_generations': 2,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'max_new_tokens': 20,
        'max_steps': 3,
        'save_interval': 1,
        'save_total_limit': 3,
        'log_completions': 1,
    }
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    grpo = find_run('text_to_image', 'grpo')[1]
    succeed(drawing(whole, model, rows, **how), 2, DRAWING, algorithm=grpo)
    run(drawing(broken, model, rows, **how), 2, DRAWING, before=dies_in('rollout', 2), algorithm=grpo)
    assert (broken / 'slice_2').is_dir() and not (broken / 'slice_end').exists()
    succeed(drawing(broken, model, rows, '--resume', 'auto', **how), 2, DRAWING, algorithm=grpo)
    expected, found = weights(whole / 'slice_end'), weights(broken / 'slice_end')
    assert expected and all(torch.equal(found[name], expected[name]) for name in expected)
    for name in ('metrics.jsonl', 'completions.jsonl'):
        assert (whole / name).read_text() == (broken / name).read_text()
