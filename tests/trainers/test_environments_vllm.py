"""Whole runs whose episodes vLLM generates: beside the trainer, ahead of it, on servers; and kills."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.cli.leaves import find_run
from align_anything.rollouts.vllm import VLLMRollouts
from align_anything.trainers.loops.online import OnlineLoop
from tests.harness.servers import vllm_servers
from tests.harness.warm import import_vllm
from tests.trainers.runs import die, lines, run
from tests.trainers.test_async import more_cores
from tests.trainers.test_environments import argv, folder
from tests.trainers.test_online import metrics_of
from tests.trainers.test_resume import assert_same

__all__ = ['folder']

Tiny = Callable[..., Path]
pytestmark = pytest.mark.extended
SETTINGS = {
    'use_vllm': True,
    'vllm_gpu_memory_utilization': 0.01,
    'environment_kwargs': '{shows: image, breaks: 7}',
    'environment_retries': 0,
    'max_failures': 1,
    'model_max_length': 512,
    'log_completions': 1,
}
PICTURES = find_run('text_image_to_text', 'grpo')


@pytest.fixture(scope='module', autouse=True)
def vllm() -> None:
    import_vllm()


def acts(settings: list[str], ranks: int = 1, before: Callable[[int], None] = more_cores) -> Any:
    pair, algorithm = PICTURES
    return run(settings, ranks, pair, before=before, algorithm=algorithm)


@pytest.mark.parametrize('servers', [0, 1, 2])
def test_ranks_train_on_episodes_with_pictures(servers: int, folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    settings = {**SETTINGS, 'eval_datasets': folder / 'held-out.jsonl', 'eval_template': 'Instruction'}
    settings |= {'eval_strategy': 'steps', 'eval_interval': 8}
    with vllm_servers(servers) as (urls, _):
        settings |= {'vllm_server_urls': f'[{", ".join(urls)}]'} if servers else {}
        ended = acts(argv(folder, tmp_path, tiny('qwen2_5_vl'), **settings), 2)
    assert [item.code for item in ended] == [0, 0], ended[0].output
    records = metrics_of(tmp_path)
    assert [record['step'] for record in records] == [4, 8]
    for record in records:
        assert record['train/rollout_drift'] < 1e-4 and 1 < record['train/turns'] < 3
    assert any('eval/success' in record for record in lines(tmp_path / 'metrics.jsonl'))
    assert {record['reason'] for record in lines(tmp_path / 'failed_episodes.jsonl')} == {'OSError: it broke'}


AHEAD = {
    **SETTINGS,
    'vllm_async': True,
    'train_size': 6,
    'max_steps': 12,
    'learning_rate': 1e-2,
    'save_interval': 4,
    'save_total_limit': 4,
}


def test_killed_while_more_episodes_are_generated(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    (ended,) = acts(argv(folder, whole, tiny('qwen2_5_vl'), **AHEAD))
    assert ended.code == 0, ended.output
    records = metrics_of(whole)
    assert [record['train/staleness'] for record in records] == [0, 4, 4]
    assert sum(record['train/failed_episodes'] for record in records) > 0
    assert len(lines(whole / 'failed_episodes.jsonl')) >= sum(record['train/failed_episodes'] for record in records)
    (ended,) = acts(argv(folder, broken, tiny('qwen2_5_vl'), **AHEAD), before=dies_in_update)
    assert ended.code is None and (broken / 'slice_4').is_dir() and not (broken / 'slice_end').exists()
    pending = torch.load(broken / 'slice_4' / 'state' / 'pending_rank0.pt', weights_only=True)
    assert any(response['media_counts'] for responses in pending['responses'] for response in responses)
    (ended,) = acts([*argv(folder, broken, tiny('qwen2_5_vl'), **AHEAD), '--resume', 'auto'])
    assert ended.code == 0 and 'after step 4 of 12' in ended.output
    assert_same(whole, broken)
    for name in ('completions.jsonl', 'failed_episodes.jsonl'):
        assert (broken / name).read_text() == (whole / name).read_text()


def dies_in_update(rank: int) -> None:
    more_cores(rank)
    update = OnlineLoop._updated

    def watched(self: OnlineLoop, *given: Any) -> Any:
        if self.progress.step == 5:
            die()
        return update(self, *given)

    OnlineLoop._updated = watched


def test_one_rank_may_have_longer_episodes_than_another(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    """One that generates ahead waits for none in its thread."""
    ended = acts(
        argv(folder, tmp_path, tiny('qwen2_5_vl'), **{**AHEAD, 'save_interval': 100, 'train_size': 14}),
        2,
        counts_turns(tmp_path),
    )
    assert [item.code for item in ended] == [0, 0], ended[0].output
    calls = [(tmp_path / f'calls_{rank}').read_text().count('x') for rank in range(2)]
    assert calls[0] != calls[1]


def counts_turns(output: Path) -> Callable[[int], None]:
    def before(rank: int) -> None:
        more_cores(rank)
        generate = VLLMRollouts.generate

        def counted(self: VLLMRollouts, *given: Any) -> Any:
            with open(output / f'calls_{rank}', 'a') as file:
                file.write('x')
            return generate(self, *given)

        VLLMRollouts.generate = counted

    return before
