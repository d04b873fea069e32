"""Online runs that generate the next responses while they train on those before."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align_anything.algorithms import policy_gradient
from align_anything.core.errors import TrainingError
from align_anything.rollouts.vllm import VLLMRollouts
from align_anything.trainers.loops.online import OnlineLoop
from align_anything.trainers.loops.pending import Pending
from tests.harness.servers import vllm_servers
from tests.harness.warm import import_vllm
from tests.trainers.runs import die, lines, run
from tests.trainers.test_online import argv, folder, metrics_of, named
from tests.trainers.test_resume import assert_same

__all__ = ['folder']

Tiny = Callable[..., Path]
# An epoch has three rollouts of four optimizer steps each.
AHEAD = {
    'use_vllm': True,
    'vllm_async': True,
    'vllm_gpu_memory_utilization': 0.01,
    'train_size': 6,
    'max_steps': 20,
    'learning_rate': 3e-2,
    'eval_strategy': 'no',
    'log_completions': 1,
    'save_interval': 4,
    'save_total_limit': 4,
}
SECONDS = 60


@pytest.fixture(scope='module', autouse=True)
def vllm() -> None:
    import_vllm()


@pytest.fixture(scope='module')
def whole(folder: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that generated ahead, every time until an update had begun."""
    output = tmp_path_factory.mktemp('whole')
    settings = argv(folder, output, tiny('qwen2'), **AHEAD)
    (ended,) = run(settings, before=generates_until_it_updates(output), algorithm=named('grpo'))
    assert ended.code == 0, ended.output
    return output


def generates_until_it_updates(output: Path) -> Callable[[int], None]:
    """Holds a thread that generates until the main one has made an update; writes down corrections beside."""

    def before(rank: int) -> None:
        more_cores(rank)
        updated = threading.Event()
        generate, update = VLLMRollouts.generate, OnlineLoop._updated
        weigh = policy_gradient.rollout_weights
        factors: list[float] = []

        def generated(self: VLLMRollouts, *given: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                updated.clear()
                note(ahead=self.version)
                assert updated.wait(SECONDS), 'nothing is updated while responses are generated'
            return generate(self, *given)

        def once(self: OnlineLoop, *given: Any) -> Any:
            step = self.progress.step
            found = update(self, *given)
            updated.set()
            note(step=step, factors=factors)
            factors.clear()
            return found

        def weighed(*given: Any, **more: Any) -> Any:
            found = weigh(*given, **more)
            factors.extend(found.tolist())
            return found

        def note(**what: Any) -> None:
            with open(output / 'notes.jsonl', 'a') as file:
                file.write(json.dumps(what) + '\n')

        VLLMRollouts.generate, OnlineLoop._updated = generated, once
        policy_gradient.rollout_weights = weighed

    return before


def more_cores(rank: int) -> None:
    """Gives the main thread another number of cores than a new thread has until it asks."""
    torch.set_num_threads(3)


def test_the_next_rollout_is_generated_while_one_is_trained_on(whole: Path) -> None:
    records = metrics_of(whole)
    assert [record['step'] for record in records] == [4, 8, 12, 16, 20]
    # The first of an epoch is waited for, and nothing is generated that would not be trained on.
    assert [record['train/staleness'] for record in records] == [0, 4, 4, 0, 4]
    notes = lines(whole / 'notes.jsonl')
    assert [note['ahead'] for note in notes if 'ahead' in note] == [0, 4, 12]
    timings = lines(whole / 'timings.jsonl')
    assert ['train/seconds/generation_ahead' in record for record in timings] == [False, True, True, False, True]


def test_older_weights_are_made_up_for(whole: Path) -> None:
    drifts = [record['train/rollout_drift'] for record in metrics_of(whole)]
    assert max(drifts[0], drifts[3]) < 1e-4 and min(drifts[1], drifts[2], drifts[4]) > 1e-2
    steps = [note for note in lines(whole / 'notes.jsonl') if 'factors' in note]
    factors = [[number for note in steps[start : start + 4] for number in note['factors']] for start in range(0, 20, 4)]
    furthest = [max(abs(number - 1) for number in rollout) for rollout in factors]
    assert max(furthest[0], furthest[3]) < 1e-4 and min(furthest[1], furthest[2], furthest[4]) > 1e-2
    assert max(map(max, factors)) <= 2.0


def test_log_probabilities_are_of_the_weights_that_sampled(whole: Path) -> None:
    """Those of slice_4 sampled what slice_8 has generated ahead, and what is trained on up to step 12."""
    shown = [record['prompt'] for record in lines(whole / 'completions.jsonl') if record['step'] == 12]
    saved = torch.load(whole / 'slice_8' / 'state' / 'pending_rank0.pt', weights_only=True)
    sampled = [response for responses in saved['responses'] for response in responses]
    assert {response['version'] for response in sampled} == {4} and len(sampled) == len(shown)
    told = torch.cat([response['per_unit']['rollout'] for response in sampled])
    scored = {
        name: torch.cat(
            [logprobs(whole / name, prompt, response['ids']) for prompt, response in zip(shown, sampled, strict=True)]
        )
        for name in ('slice_4', 'slice_8')
    }
    torch.testing.assert_close(scored['slice_4'], told, rtol=0, atol=1e-4)
    assert float((scored['slice_8'] - told).abs().mean()) > 1e-2


def logprobs(model: Path, prompt: str, response: torch.Tensor) -> torch.Tensor:
    """By transformers, `(length,)`."""
    asked = AutoTokenizer.from_pretrained(model)(prompt, add_special_tokens=False, return_tensors='pt').input_ids[0]
    ids = torch.cat([asked, response])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids[None]).logits[0]
    return logits.log_softmax(-1)[len(asked) - 1 : -1].gather(1, response[:, None])[:, 0]


@pytest.mark.extended
def test_killed_in_an_update_while_more_is_generated(whole: Path, folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    settings = argv(folder, tmp_path, tiny('qwen2'), **AHEAD)
    (ended,) = run(settings, before=dies_in_update, algorithm=named('grpo'))
    assert ended.code is None and (tmp_path / 'slice_8').is_dir() and not (tmp_path / 'slice_end').exists()
    (ended,) = run([*settings, '--resume', 'auto'], before=more_cores, algorithm=named('grpo'))
    assert ended.code == 0 and 'after step 8 of 20' in ended.output
    assert_same(whole, tmp_path)


def dies_in_update(rank: int) -> None:
    more_cores(rank)
    update = OnlineLoop._updated

    def watched(self: OnlineLoop, *given: Any) -> Any:
        if self.progress.step == 9:
            die()
        return update(self, *given)

    OnlineLoop._updated = watched


@pytest.mark.extended
def test_ranks_generate_ahead_together(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    """With one server, whose weights change when no rank generates; adapters under ZeRO-3, held-out prompts."""
    changes = {**AHEAD, 'train_size': 14, 'max_steps': 12, 'save_total_limit': 0, 'eval_strategy': 'steps'}
    more = {'eval_interval': 8, 'use_lora': True, 'lora_dropout': 0.0, 'ds_cfgs': 'ds_z3_config.json'}
    with vllm_servers(1) as (urls, _):
        settings = argv(folder, tmp_path, tiny('qwen2'), **changes, **more, vllm_server_urls=f'[{urls[0]}]')
        ended = run(settings, 2, before=generates_slowly_on_rank_1(tmp_path), algorithm=named('grpo'))
    assert [item.code for item in ended] == [0, 0], ended[0].output
    assert [record['train/staleness'] for record in metrics_of(tmp_path)] == [0, 4, 4]
    assert sum('eval/reward' in record for record in lines(tmp_path / 'metrics.jsonl')) == 1


def generates_slowly_on_rank_1(output: Path) -> Callable[[int], None]:
    """Makes a hand-over fail while a rank generates with the server that another one feeds."""

    def before(rank: int) -> None:
        generate, sync, take = VLLMRollouts.generate, VLLMRollouts.sync, Pending.take
        asked = threading.Event()

        def generated(self: VLLMRollouts, *given: Any) -> Any:
            ahead = threading.current_thread() is not threading.main_thread()
            if ahead and rank == 1:
                assert asked.wait(SECONDS)
                time.sleep(1)
            found = generate(self, *given)
            if ahead:
                (output / f'generated_{rank}').touch()
            return found

        def watched(self: VLLMRollouts, version: int) -> None:
            assert version == 0 or all((output / f'generated_{number}').exists() for number in range(2))
            sync(self, version)

        def taken(self: Pending) -> Any:
            asked.set()
            return take(self)

        VLLMRollouts.generate, VLLMRollouts.sync, Pending.take = generated, watched, taken

    return before


@pytest.mark.extended
def test_what_goes_wrong_in_the_thread_ends_the_run(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    settings = argv(folder, tmp_path, tiny('qwen2'), **AHEAD)
    (ended,) = run(settings, before=fails_ahead, algorithm=named('grpo'))
    assert ended.code == 2 and 'TrainingError' in ended.output and 'the engine died' in ended.output
    assert [record['step'] for record in metrics_of(tmp_path)] == [4]


def fails_ahead(rank: int) -> None:
    generate = VLLMRollouts.generate

    def broken(self: VLLMRollouts, *given: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise TrainingError('the engine died')
        return generate(self, *given)

    VLLMRollouts.generate = broken


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('grpo', {'use_vllm': False}, '(command line --vllm_async): it means nothing without use_vllm: True'),
        ('grpo', {'rollout_correction_cap': 'null'}, 'for which grpo does not make up'),
        ('online_dpo', {}, 'for which online_dpo does not make up'),
        ('grpo', {'dynamic_sampling_rounds': 1}, 'dynamic_sampling_rounds generates again'),
        ('grpo', {'vllm_enable_sleep': True}, 'vllm_enable_sleep gives away'),
        ('grpo', {'vllm_tensor_parallel_size': 2}, 'devices that share weights'),
    ],
)
def test_what_does_not_go_with_it(
    name: str, changes: dict[str, Any], message: str, folder: Path, tiny: Tiny, tmp_path: Path
) -> None:
    settings = argv(folder, tmp_path, tiny('qwen2'), **{'use_vllm': True, 'vllm_async': True, **changes})
    (ended,) = run(settings, algorithm=named(name))
    assert ended.code == 2 and message in ended.output, ended.output
