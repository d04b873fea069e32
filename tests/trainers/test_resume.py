"""Killed at any moment, a run goes on to the weights, metrics and skipped rows of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.trainers.loops.offline import OfflineLoop
from tests.harness.pairwise import first_of
from tests.trainers.runs import die, lines, run, sft, succeed, text_rows, weights, write_rows

ROWS, RANKS = 26, 2
# 26 rows in steps of 1 row x 2 accumulated x 2 ranks: 7 steps an epoch, 14 in all; checkpoints after 3, 6, 9 and 12.
SHAPE = {'per_device_train_batch_size': 1, 'gradient_accumulation_steps': 2, 'epochs': 2}
SAVES = {'save_interval': 3, 'save_total_limit': 2}
STEPS = 14
KINDS = {
    'z0': {'ds_cfgs': 'ds_z0_config.json'},
    'z2': {'ds_cfgs': 'ds_z2_config.json'},
    'z3': {'ds_cfgs': 'ds_z3_config.json'},
    'bf16': {'ds_cfgs': 'ds_z2_config.json', 'bf16': True, 'gradient_checkpointing': True},
    'lora': {'ds_cfgs': 'ds_z2_config.json', 'use_lora': True, 'r': 4, 'lora_dropout': 0.2},
    'lora_z3': {'ds_cfgs': 'ds_z3_config.json', 'use_lora': True, 'r': 4, 'lora_dropout': 0.2},
    'fsdp': {'engine': 'fsdp', 'ds_cfgs': None, 'bf16': True},
    'fsdp_lora': {'engine': 'fsdp', 'ds_cfgs': None, 'use_lora': True, 'r': 4, 'lora_dropout': 0.2},
    'stream': {'ds_cfgs': 'ds_z2_config.json', 'streaming': True, 'max_steps': STEPS},
}

Settings = Callable[..., list[str]]


@pytest.fixture(scope='module')
def settings(tiny, tmp_path_factory) -> Settings:
    """`settings(output, 'z2', **more)`: a run with dropout, shuffling, a worker, evaluation and rows to be skipped."""
    folder = tmp_path_factory.mktemp('inputs')
    model = shutil.copytree(tiny('opt'), folder / 'opt')
    config = json.loads((model / 'config.json').read_text())
    (model / 'config.json').write_text(json.dumps({**config, 'dropout': 0.1}))
    rows, held_out = text_rows(ROWS), text_rows(5, seed=1)
    rows[3]['output'] = rows[17]['output'] = held_out[2]['output'] = ''
    train, evaluation = write_rows(folder / 'rows.jsonl', rows), write_rows(folder / 'held_out.jsonl', held_out)

    def make(output: Path, kind: str, *more: object, **changes: object) -> list[str]:
        values = {**SHAPE, **KINDS[kind], **changes}
        return sft(
            output, values.pop('model_name_or_path', model), train, *more, eval_datasets=evaluation,
            eval_template='Instruction', eval_strategy='epoch', num_workers=1, max_skipped_ratio=0.5, **values,
        )  # fmt: skip

    make.model = model
    return make


@pytest.fixture(scope='module')
def uninterrupted(settings, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a run of a kind that nothing interrupted and that saved nothing on its way."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp('uninterrupted') / kind
            succeed(settings(made[kind], kind), RANKS)
        return made[kind]

    return folder


def assert_same(one: Path, other: Path) -> None:
    expected, found = weights(one / 'slice_end'), weights(other / 'slice_end')
    assert expected and found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert different == []
    for name in ('metrics.jsonl', 'skipped_samples.jsonl'):
        told = [(folder / name).read_text() if (folder / name).exists() else None for folder in (one, other)]
        assert told[0] == told[1], name


def checkpoints_in(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.glob('slice_*')), key=lambda name: (len(name), name))


def dies_in_step(step: int) -> Callable[[int], None]:
    """Rank 1 is killed in the second micro-batch of a step, with the first one's gradients made."""

    def before(rank: int) -> None:
        inner_step, inner_terms = OfflineLoop._step, SFT.terms

        def watched(self, loaded):
            calls = []

            def terms(*given):
                calls.append(given)
                if len(calls) == 2:
                    die()
                return inner_terms(*given)

            if rank == 1 and self.progress.step + 1 == step:
                SFT.terms = terms
            return inner_step(self, loaded)

        OfflineLoop._step = watched

    return before


def dies_while_saving(name: str) -> Callable[[int], None]:
    """Rank 0 is killed with the model and half of the state of a slice on disk."""

    def before(rank: int) -> None:
        inner = DeepSpeedEngine.save_state

        def save_state(self, folder: Path) -> None:
            inner(self, folder)
            if rank == 0 and folder.parent.name == f'.{name}.partial':
                file = next(folder.rglob('*optim_states.pt'), None) or next(folder.rglob('*.pt'))
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
                die()

        DeepSpeedEngine.save_state = save_state

    return before


def dies_before_the_rename(name: str) -> Callable[[int], None]:
    def before(rank: int) -> None:
        inner = os.replace

        def replace(source, target, **options):
            if Path(target).name == name:
                die()
            return inner(source, target, **options)

        os.replace = replace

    return before


def dies_between_epochs(rank: int) -> None:
    inner = OfflineLoop._end_epoch

    def end_epoch(self) -> None:
        inner(self)
        die()

    OfflineLoop._end_epoch = end_epoch


def killed(argv: list[str], before: Callable[[int], None], ranks: int = RANKS) -> None:
    assert None in [item.code for item in run(argv, ranks, before=before)]


def test_the_uninterrupted_run_trains_with_dropout_skips_and_evaluates(settings, uninterrupted, tmp_path):
    """Otherwise the comparisons below would prove less than they say."""
    folder = uninterrupted('z2')
    records = lines(folder / 'metrics.jsonl')
    assert [record['step'] for record in records] == [*range(1, 8), 7, *range(8, 15), 14]
    assert len(lines(folder / 'skipped_samples.jsonl')) == 3
    assert len({record['train/learning_rate'] for record in records if 'train/loss' in record}) == STEPS
    # Seeds the dropout alone differently: the weights must notice.
    from align_anything.trainers.runs import begin as module

    def before(rank: int) -> None:
        module.rank_seed = lambda seed, rank: 1 + rank

    succeed(settings(tmp_path, 'z2'), RANKS, before=before)
    expected, found = weights(folder / 'slice_end'), weights(tmp_path / 'slice_end')
    assert not any(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize('kind', first_of(KINDS, 'z2'))
def test_killed_in_the_middle_of_a_step(settings, uninterrupted, tmp_path, kind):
    killed(settings(tmp_path, kind, **SAVES), dies_in_step(8))
    assert checkpoints_in(tmp_path) == ['slice_3', 'slice_6']
    output = succeed(settings(tmp_path, kind, '--resume', 'auto', **SAVES), RANKS)
    assert f'resumed from {tmp_path}/slice_6 after step 6 of 14' in output
    assert_same(uninterrupted(kind), tmp_path)


@pytest.mark.parametrize('dies', first_of([dies_while_saving, dies_before_the_rename], dies_while_saving))
def test_killed_while_saving_the_half_written_slice_is_never_taken(settings, uninterrupted, tmp_path, dies):
    killed(settings(tmp_path, 'z2', **SAVES), dies('slice_9'))
    assert checkpoints_in(tmp_path) == ['slice_3', 'slice_6']
    assert (tmp_path / '.slice_9.partial').is_dir()
    output = succeed(settings(tmp_path, 'z2', '--resume', 'auto', **SAVES), RANKS)
    assert f'resumed from {tmp_path}/slice_6 after' in output
    assert_same(uninterrupted('z2'), tmp_path)
    assert [path.name for path in tmp_path.glob('.slice*')] == []


@pytest.mark.extended
@pytest.mark.parametrize('interval', [3, 7])
def test_killed_between_epochs(settings, uninterrupted, tmp_path, interval):
    """With 7, the slice was taken after the last step of the epoch and before the evaluation that follows it."""
    saves = {'save_interval': interval, 'save_total_limit': 2}
    killed(settings(tmp_path, 'z2', **saves), dies_between_epochs)
    newest = 6 if interval == 3 else 7
    output = succeed(settings(tmp_path, 'z2', '--resume', 'auto', **saves), RANKS)
    assert f'resumed from {tmp_path}/slice_{newest} after' in output
    assert_same(uninterrupted('z2'), tmp_path)


@pytest.mark.extended
def test_killed_three_times(settings, uninterrupted, tmp_path):
    killed(settings(tmp_path, 'z2', **SAVES), dies_in_step(2))
    assert checkpoints_in(tmp_path) == []
    resumed = settings(tmp_path, 'z2', '--resume', 'auto', **SAVES)
    killed(resumed, dies_while_saving('slice_6'))
    killed(resumed, dies_in_step(13))
    assert f'resumed from {tmp_path}/slice_12 after' in succeed(resumed, RANKS)
    assert_same(uninterrupted('z2'), tmp_path)


def test_sigterm_saves_and_leaves_with_a_code_of_its_own_and_resume_is_exact(settings, uninterrupted, tmp_path):
    def before(rank: int) -> None:
        inner = OfflineLoop._step

        def step(self, loaded):
            if rank == 1 and self.progress.step + 1 == 5:
                os.kill(os.getpid(), signal.SIGTERM)  # one rank hears it; all must stop together
            return inner(self, loaded)

        OfflineLoop._step = step

    # save_total_limit is 0: the run saves no checkpoints, but it must not lose its work.
    ended = run(settings(tmp_path, 'z2'), RANKS, before=before)
    assert [one.code for one in ended] == [143] * RANKS
    assert 'stopped by SIGTERM after step 5; go on with --resume auto' in ended[0].output
    assert checkpoints_in(tmp_path) == ['slice_5']
    succeed(settings(tmp_path, 'z2', '--resume', 'auto'), RANKS)
    assert_same(uninterrupted('z2'), tmp_path)


@pytest.mark.extended
def test_resume_from_a_path_into_another_folder(settings, uninterrupted, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    killed(settings(first, 'z2', **SAVES), dies_in_step(8))
    succeed(settings(second, 'z2', '--resume', first / 'slice_3'), RANKS)
    expected, found = weights(uninterrupted('z2') / 'slice_end'), weights(second / 'slice_end')
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    steps = [record['step'] for record in lines(second / 'metrics.jsonl')]
    assert steps == [*range(4, 8), 7, *range(8, 15), 14]


SPLITS = {2: (1, 2), 1: (2, 2), 4: (1, 1)}
"""Ranks, and the samples and micro-batches that each of them then has, to make steps of four samples."""


@pytest.mark.parametrize('case', first_of([f'{kind} on {ranks}' for kind in KINDS for ranks in (1, 4)], 'z2 on 1'))
def test_a_run_goes_on_with_other_ranks_where_a_step_has_as_many_samples(settings, tmp_path, case):
    """To rounding: sums are taken in another order. Without dropout, whose course the ranks decide."""
    kind, ranks = case.split(' on ')[0], int(case[-1])
    still = {'lora_dropout': 0.0} if 'lora' in kind else {}
    model = shutil.copytree(settings.model, tmp_path / 'still')
    config = json.loads((model / 'config.json').read_text())
    (model / 'config.json').write_text(json.dumps({**config, 'dropout': 0.0}))

    def split(folder: Path, number: int, *more: object) -> list[str]:
        size, accumulated = SPLITS[number]
        shape = {'per_device_train_batch_size': size, 'gradient_accumulation_steps': accumulated}
        return settings(folder, kind, *more, model_name_or_path=model, **SAVES, **shape, **still)

    succeed(split(tmp_path / 'whole', RANKS), RANKS)
    killed(split(tmp_path / 'run', RANKS), dies_in_step(8))
    output = succeed(split(tmp_path / 'run', ranks, '--resume', 'auto'), ranks)
    assert f'the checkpoint is of {RANKS} ranks, this run has {ranks}' in output
    assert not (tmp_path / 'run' / '.resumed_state').exists()
    one, other = (lines(tmp_path / name / 'metrics.jsonl') for name in ('whole', 'run'))
    assert [record['step'] for record in one] == [record['step'] for record in other]
    exact = 2e-2 if kind in ('bf16', 'fsdp') else 1e-4
    for mine, theirs in zip(one, other, strict=True):
        for name in {'train/loss', 'train/grad_norm', 'train/learning_rate', 'eval/loss'} & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=exact), (mine['step'], name)
    expected, found = weights(tmp_path / 'whole' / 'slice_end'), weights(tmp_path / 'run' / 'slice_end')
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=exact, atol=exact)
