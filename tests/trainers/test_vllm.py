"""Online runs whose responses vLLM generates: with the weights in training, on every rank, or not at all."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from align_anything.models.handover import handed_over
from align_anything.rollouts.vllm import VLLMRollouts
from align_anything.trainers.runs import rollout_engine
from tests.harness.hosts import INTERFACE, two_hosts, why_no_hosts
from tests.harness.servers import vllm_servers
from tests.harness.warm import import_vllm
from tests.trainers.runs import die, nothing, run
from tests.trainers.test_online import argv, folder, metrics_of, named
from tests.trainers.test_resume import assert_same

__all__ = ['folder']

Tiny = Callable[..., Path]
SMALL = {'use_vllm': True, 'vllm_gpu_memory_utilization': 0.01, 'eval_strategy': 'no', 'max_steps': 8}


@pytest.fixture(scope='module', autouse=True)
def vllm() -> None:
    import_vllm()


@pytest.mark.extended
@pytest.mark.parametrize('stage', [2, 3])
def test_ranks_generate_with_the_weights_in_training(stage: int, folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Adapters under ZeRO-3, whole weights under ZeRO-2; the probe of each rollout passes as closely as can be.

    Two ranks under ZeRO-2 also share an engine, or ask a server, below.
    """
    adapters: dict[str, Any] = {'use_lora': True, 'lora_dropout': 0.0} if stage == 3 else {}
    changes = {**SMALL, **adapters, 'vllm_probe_tolerance': 1e-4, 'learning_rate': 1e-2}
    settings = argv(folder, tmp_path, tiny('qwen2'), **changes, ds_cfgs=f'ds_z{stage}_config.json')
    ended = run(settings, 2, algorithm=named('grpo'))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    records = metrics_of(tmp_path)
    assert len(records) == 2
    assert all(record['train/rollout_drift'] < 1e-4 for record in records)


def test_a_run_stops_when_vllm_does_not_sample_from_the_weights_in_training(
    folder: Path, tiny: Tiny, tmp_path: Path
) -> None:
    settings = argv(folder, tmp_path, tiny('qwen2'), **SMALL, learning_rate=1e-1)
    (ended,) = run(settings, before=hands_over_the_first_weights, algorithm=named('ppo_vllm'))
    assert ended.code == 2 and 'after step 4 vLLM does not generate with the weights in training' in ended.output
    assert 'those of the trainer' in ended.output and 'vllm_probe_tolerance' in ended.output
    assert len(metrics_of(tmp_path)) == 1


def hands_over_the_first_weights(rank: int) -> None:
    first: list[tuple[str, Tensor]] = []

    def stale(*arguments: Any) -> Iterator[tuple[str, Tensor]]:
        if not first:
            first.extend((name, tensor.clone()) for name, tensor in handed_over(*arguments))
        return iter(first)

    rollout_engine.handed_over = stale


@pytest.mark.extended
def test_killed_while_weights_are_handed_over(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    changes = {**SMALL, 'save_interval': 4, 'save_total_limit': 2, 'log_completions': 1}
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    (ended,) = run(argv(folder, whole, tiny('qwen2'), **{**changes, 'save_total_limit': 0}), algorithm=named('grpo'))
    assert ended.code == 0, ended.output
    (ended,) = run(argv(folder, broken, tiny('qwen2'), **changes), before=dies_in_sync, algorithm=named('grpo'))
    assert ended.code is None and (broken / 'slice_4').is_dir() and not (broken / 'slice_end').exists()
    (ended,) = run(argv(folder, broken, tiny('qwen2'), '--resume', 'auto', **changes), algorithm=named('grpo'))
    assert ended.code == 0 and 'after step 4 of 8' in ended.output
    assert_same(whole, broken)


def dies_in_sync(rank: int) -> None:
    named_weights = VLLMRollouts._named

    def broken(self: VLLMRollouts) -> Iterator[tuple[str, Tensor]]:
        for number, item in enumerate(named_weights(self)):
            if self.version == 0 and number == 3:
                die()
            yield item

    VLLMRollouts._named = broken


@pytest.mark.extended
def test_two_ranks_share_one_engine(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    # A run that ended, or was killed, leaves this behind.
    Path('/dev/shm/-tp:0-[0-1]-cpushm_0').touch()
    changes = {**SMALL, 'vllm_tensor_parallel_size': 2, 'vllm_num_engines': 1, 'vllm_probe_tolerance': 1e-4}
    ended = run(argv(folder, tmp_path, tiny('qwen2'), **changes, learning_rate=1e-2), 2, algorithm=named('grpo'))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    assert all(record['train/rollout_drift'] < 1e-4 for record in metrics_of(tmp_path))


@pytest.mark.extended
def test_ranks_generate_with_a_server_until_it_dies(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    def dies_after_the_first_rollout(rank: int) -> None:
        generate = VLLMRollouts.generate

        def watched(self: VLLMRollouts, *given: Any) -> Any:
            if self.version and rank == 0:
                os.kill(server, signal.SIGKILL)
            return generate(self, *given)

        VLLMRollouts.generate = watched

    with vllm_servers(1) as (urls, (server,)):
        changes = {**SMALL, 'vllm_server_urls': f'[{urls[0]}]', 'vllm_probe_tolerance': 1e-4}
        ended = run(argv(folder, tmp_path, tiny('qwen2'), **changes), 2, algorithm=named('grpo'))
        assert [item.code for item in ended] == [0, 0], ended[0].output
        assert all(record['train/rollout_drift'] < 1e-4 for record in metrics_of(tmp_path))
        settings = argv(folder, tmp_path / 'broken', tiny('qwen2'), **changes)
        (ended,) = run(settings, before=dies_after_the_first_rollout, algorithm=named('grpo'))
        assert ended.code == 2 and f'{urls[0]}/generate is gone' in ended.output and 'with resume' in ended.output
        (ended,) = run(argv(folder, tmp_path / 'gone', tiny('qwen2'), **changes), algorithm=named('grpo'))
        assert ended.code == 2 and f'vllm_server_urls: {urls[0]} cannot be reached' in ended.output


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'use_vllm': True, 'vllm_num_engines': 3}, 'vllm_num_engines = 3: each device generates, so there are 1'),
        ({'use_vllm': True, 'vllm_tensor_parallel_size': 2}, 'vllm_tensor_parallel_size = 2 does not divide the 1 dev'),
        ({'use_vllm': True, 'vllm_max_model_len': 8}, 'vllm_max_model_len = 8 is less than model_cfgs.model_max_len'),
        (
            {'use_vllm': True, 'vllm_server_timeout': 3},
            '(command line --vllm_server_timeout): it means nothing without vllm_cfgs.vllm_server_urls',
        ),
        ({'use_vllm': True, 'vllm_server_urls': '[a, b]', 'vllm_num_engines': 1}, 'but vllm_server_urls has 2'),
        (
            {'use_vllm': True, 'vllm_server_urls': '[a]', 'vllm_tensor_parallel_size': 2},
            'generates on devices of its own',
        ),
        (
            {'use_vllm': True, 'generation_batch_size': 2},
            '(command line --generation_batch_size): it means nothing without use_vllm: False',
        ),
        ({'vllm_enforce_eager': True}, '(command line --vllm_enforce_eager): it means nothing without use_vllm: True'),
    ],
)
def test_settings_that_vllm_cannot_obey(
    changes: dict[str, Any], message: str, folder: Path, tiny: Tiny, tmp_path: Path
) -> None:
    (ended,) = run(argv(folder, tmp_path, tiny('qwen2'), **changes), algorithm=named('grpo'))
    assert ended.code == 2 and message in ended.output, ended.output


@pytest.mark.extended
def test_a_server_on_another_host(folder: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := why_no_hosts():
        pytest.skip(f'no second host can be made here: {why}')

    def trained(name: str, url: str, **more: Any) -> Path:
        changes = {**SMALL, 'vllm_server_urls': f'[{url}]', 'vllm_probe_tolerance': 1e-4, **more}
        (ended,) = run(
            argv(folder, tmp_path / name, tiny('qwen2'), **changes),
            before=lambda _: os.environ.update(GLOO_SOCKET_IFNAME=INTERFACE),
            algorithm=named('grpo'),
        )
        assert ended.code == 0, ended.output
        return tmp_path / name

    with vllm_servers(1) as (urls, _):
        here = trained('here', urls[0])
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', INTERFACE)
    with two_hosts(tmp_path) as (first, second), second.network(), vllm_servers(1, second.address) as (urls, _):
        with first.network():
            assert_same(here, trained('http', urls[0]))
            assert_same(here, trained('gloo', urls[0], vllm_server_transfer='gloo'))


@pytest.mark.extended
def test_a_server_whose_host_is_down_ends_the_run_which_goes_on(
    folder: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := why_no_hosts():
        pytest.skip(f'no second host can be made here: {why}')
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    with two_hosts(tmp_path) as (first, second), second.network(), vllm_servers(1, second.address) as (urls, _):
        changes = {**SMALL, 'vllm_server_urls': f'[{urls[0]}]', 'save_interval': 4, 'save_total_limit': 2}

        def is_cut(rank: int) -> None:
            generate = VLLMRollouts.generate

            def watched(self: VLLMRollouts, *given: Any) -> Any:
                if self.version:
                    second.cut_off()
                return generate(self, *given)

            VLLMRollouts.generate = watched

        def ended(output: Path, before: Callable[[int], None] = nothing, *more: str) -> Any:
            return run([*argv(folder, output, tiny('qwen2'), **changes), *more], before=before, algorithm=named('grpo'))

        with first.network():
            assert [one.code for one in ended(whole)] == [0]
            began = time.monotonic()
            (lost,) = ended(broken, is_cut)
            assert lost.code == 2 and f'{urls[0]}/generate is gone' in lost.output, lost.output
            assert time.monotonic() - began < 60 and 'with resume' in lost.output and 'Traceback' not in lost.output
            second.cut_off(False)
            assert [one.code for one in ended(broken, nothing, '--resume', 'auto')] == [0]
    assert_same(whole, broken)
