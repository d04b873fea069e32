"""Tasks of evaluations in training: they measure what the model answers, and the training is as without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.algorithms.dpo import DPO
from align_anything.algorithms.sft import SFT
from align_anything.cli.leaves import find_run
from align_anything.core.errors import SettingsError
from align_anything.metrics.samples import read_samples
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS, Pair
from align_anything.trainers.runs.checks import check_evaluation
from align_anything.trainers.runs.eval_tasks import metrics_of
from tests.trainers import denoising
from tests.trainers.runs import die, lines, run, sft, succeed, text_rows, weights, write_rows
from tests.trainers.test_interruptions import loads_nothing
from tests.trainers.test_resume import assert_same

Tiny = Callable[..., Path]
OWN = 'def letters(completions):\n    return [float(len(item.response)) for item in completions]\n'


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows to train on, two sets of rows to evaluate, one of which has a prompt that is too long, and a task."""
    folder = tmp_path_factory.mktemp('tasks')
    write_rows(folder / 'rows.jsonl', text_rows(8))
    held_out = text_rows(5, seed=1)
    held_out[3]['instruction'] = 'sun ' * 125
    write_rows(folder / 'first.jsonl', held_out)
    write_rows(folder / 'second.jsonl', text_rows(2, seed=2))
    (folder / 'own.py').write_text(OWN)
    return folder


def evaluated(folder: Path, *names: str, **changes: Any) -> dict[str, Any]:
    """The settings of an evaluation of these rows after each step."""
    return {
        'eval_datasets': f'[{", ".join(str(folder / name) for name in names)}]',
        'eval_template': 'Instruction',
        'eval_strategy': 'steps',
        'eval_interval': 1,
        'per_device_eval_batch_size': 2,
        **changes,
    }


def told(output: Path) -> list[dict[str, float]]:
    return [record for record in lines(output / 'metrics.jsonl') if any(name.startswith('eval/') for name in record)]


def test_answers_are_measured_and_the_training_is_as_without(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    common = evaluated(folder, 'first.jsonl', 'second.jsonl', max_steps=2, max_skipped_ratio=0.9, lora_dropout=0.3,
                       use_lora=True, ds_cfgs='ds_z2_config.json')  # fmt: skip
    tasks = {
        'eval_tasks': f'[exact_match, wer, {folder}/own.py:letters]',
        'eval_task_kwargs': '{wer: {plain: false}}',
        'eval_max_new_tokens': 4,
        'save_best': 'wer',
    }
    for name, more in {'with': tasks, 'without': {}}.items():
        succeed(sft(tmp_path / name, tiny('qwen2'), folder / 'rows.jsonl', **common, **more), 2)
    found, plain = told(tmp_path / 'with'), told(tmp_path / 'without')
    assert [record['step'] for record in found] == [1, 2]
    for record, before in zip(found, plain, strict=True):
        assert record['eval/loss'] == before['eval/loss']
        samples = read_samples(tmp_path / 'with' / 'eval_tasks' / f'{record["step"]:08d}')
        # Of the first set's five prompts one leaves no room for an answer.
        assert [sample.row for sample in samples] == [0, 1, 2, 4, 5, 6]
        letters = [len(sample.text) for sample in samples]
        assert record['eval/letters'] == pytest.approx(sum(letters) / 6)
        assert record['eval/first.jsonl/letters'] == pytest.approx(sum(letters[:4]) / 4)
        assert record['eval/second.jsonl/letters'] == pytest.approx(sum(letters[4:]) / 2)
        assert record['eval/wer'] > 0 and record['eval/exact_match'] == 0
        assert samples[0].references() == [text_rows(5, seed=1)[0]['output']]
    assert 'first.jsonl:4' in (tmp_path / 'with' / 'skipped_samples.jsonl').read_text()
    assert (tmp_path / 'with' / 'slice_best').exists()
    one, other = (weights(tmp_path / name / 'slice_end') for name in ('with', 'without'))
    assert one and all((one[name] == other[name]).all() for name in other)


def test_what_is_rewarded_is_what_is_measured(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    """One answer to a prompt is both rewarded and measured: a task that says what the reward says has its mean."""
    argv = sft(
        tmp_path, tiny('qwen2'), folder / 'rows.jsonl', num_generations=2, per_device_prompt_batch_size=2,
        per_device_train_batch_size=4, max_new_tokens=5, max_steps=2, reward_functions=f'[{folder}/own.py:letters]',
        eval_tasks=f'[{folder}/own.py:letters, cer]', save_best='letters', **evaluated(folder, 'second.jsonl'),
    )  # fmt: skip
    succeed(argv, algorithm=find_run('text_to_text', 'grpo')[1])
    for record in told(tmp_path):
        assert record['eval/letters'] == pytest.approx(record['eval/reward']) and record['eval/cer'] > 0
        assert len(lines(tmp_path / 'eval_tasks' / f'{record["step"]:08d}' / 'generations.jsonl')) == 2
    assert len(told(tmp_path)) == 2 and (tmp_path / 'slice_best').exists()


def test_rows_that_lack_what_a_task_reads_are_told_before_weights_are_loaded(
    folder: Path, tiny: Tiny, tmp_path: Path
) -> None:
    more = evaluated(folder, 'first.jsonl', eval_tasks='[vqa]', eval_max_new_tokens=4)
    (ended,) = run(sft(tmp_path, tiny('qwen2'), folder / 'rows.jsonl', **more), before=loads_nothing)
    assert ended.code == 2 and "first.jsonl:1 has no answer in meta['answers']" in ended.output


NEEDED = {'model_name_or_path': 'm', 'train_datasets': 'd', 'train_template': 't', 'output_dir': 'o'}
EVALUATED = {'eval_datasets': 'e', 'eval_template': 't'}


@pytest.mark.parametrize(
    ('algorithm', 'given', 'words'),
    [
        ('sft', {'eval_tasks': '[wer]'}, 'it means nothing without data_cfgs.eval_datasets'),
        ('sft', {'eval_tasks': '[wer]', 'eval_strategy': 'no', **EVALUATED}, 'it means nothing with eval_strategy: no'),
        ('rm', {'eval_tasks': '[wer]', **EVALUATED}, 'scores answers and writes none'),
        ('grpo', {'eval_tasks': '[wer]', 'eval_max_new_tokens': 9, **EVALUATED}, 'responses are generated anyway'),
        ('sft', {'eval_max_new_tokens': 9, **EVALUATED}, 'it means nothing without train_cfgs.eval_tasks'),
        ('sft', {'eval_tasks': '[wr]', **EVALUATED}, "train_cfgs.eval_tasks: there is no metric 'wr'. Did you mean"),
        ('sft', {'eval_tasks': '[win_rate]', **EVALUATED}, "'win_rate' compares two checkpoints"),
        ('sft', {'eval_tasks': '[lm_eval:gsm8k]', **EVALUATED}, 'align-anything evaluate runs it'),
        ('sft', {'eval_tasks': '[shapes]', **EVALUATED}, 'answers of the pair text_to_text hold text'),
        ('sft', {'eval_tasks': '[wer]', 'eval_task_kwargs': '{cer: {}}', **EVALUATED}, 'eval_task_kwargs: '),
        ('sft', {'eval_tasks': '[own.py:loss]', **EVALUATED}, "tells of 'loss' already"),
    ],
)
def test_what_is_refused(
    algorithm: str, given: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'own.py').write_text(OWN.replace('letters', 'loss'))
    argv = [part for key, value in {**NEEDED, **given}.items() for part in (f'--{key}', str(value))]
    pair, kind = find_run('text_to_text', algorithm)
    with pytest.raises(SettingsError) as refused:
        cfgs = settings_of(pair, kind, argv, {}).cfgs
        check_evaluation(cfgs, ['loss'], 10, metrics_of(cfgs, pair))
    assert words in str(refused.value)


WIDER = [
    pytest.param('sd3', PAIRS['text_to_image'], SFT, id='denoised'),
    pytest.param('sd3', PAIRS['text_to_image'], DPO, id='denoised-dpo'),
    pytest.param('drawing', PAIRS['text_to_image'], SFT, id='codes'),
]


@pytest.mark.extended
@pytest.mark.parametrize(('model', 'pair', 'algorithm'), WIDER)
def test_media_are_measured(
    model: str, pair: Pair, algorithm: type, tiny: Tiny, emitting: Tiny, tmp_path: Path
) -> None:
    rows = denoising.write_digits(tmp_path, 6)
    how = denoising.SHOWN if algorithm is DPO else {}
    how = {**how, 'eval_template': how.get('template', 'Messages')}
    how['eval_template_kwargs'] = how.get('train_template_kwargs', '{images: ""}')
    how |= {'eval_datasets': rows, 'eval_strategy': 'epoch', 'eval_tasks': f'[{tmp_path}/rewards.py:dark]'}
    how |= {'eval_max_new_tokens': 40} if model == 'drawing' else {'preview_steps': 2, 'preview_guidance': 2.0}
    how |= {'model_max_length': 128} if model == 'drawing' else {}
    checkpoint = emitting('drawing') if model == 'drawing' else tiny(model)
    for name, ranks, stage in (('one', 1, 'ds_z0_config.json'), ('two', 2, 'ds_z3_config.json')):
        argv = denoising.offline(tmp_path / name, checkpoint, rows, max_steps=2, ds_cfgs=stage, **how)
        succeed(argv, ranks, pair, algorithm=algorithm)
        (record,) = told(tmp_path / name)
        (own,) = (tmp_path / name / 'eval_tasks').iterdir()
        samples = read_samples(own)
        assert len(samples) == 6 and all(sample.media('image') for sample in samples)
        assert 0 < record['eval/dark'] < 1


@pytest.mark.extended
@pytest.mark.parametrize('stage', ['ds_z2_config.json', 'ds_z3_config.json'])
def test_a_killed_run_measures_the_same(stage: str, folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    how = evaluated(folder, 'first.jsonl', eval_tasks='[cer]', eval_max_new_tokens=4, ds_cfgs=stage, epochs=2,
                    save_interval=1, save_total_limit=9, save_checkpoint=True, max_skipped_ratio=0.9)  # fmt: skip
    succeed(sft(tmp_path / 'whole', tiny('qwen2'), folder / 'rows.jsonl', **how), 2)

    def dies(rank: int) -> None:
        from align_anything.trainers.loops.offline import OfflineLoop

        inner = OfflineLoop.evaluate

        def evaluate(self: Any) -> None:
            inner(self)
            if self.progress.step == 2:
                die()

        OfflineLoop.evaluate = evaluate

    run(sft(tmp_path / 'cut', tiny('qwen2'), folder / 'rows.jsonl', **how), 2, before=dies)
    succeed(sft(tmp_path / 'cut', tiny('qwen2'), folder / 'rows.jsonl', '--resume', 'auto', **how), 2)
    assert_same(tmp_path / 'whole', tmp_path / 'cut')
    assert told(tmp_path / 'cut') == told(tmp_path / 'whole') and len(told(tmp_path / 'cut')) == 4
