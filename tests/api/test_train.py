"""`align_anything.train`: rows and rewards in memory, callbacks, errors, and what is left in the process."""

from __future__ import annotations

import gc
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import align_anything
from align_anything.core.errors import DataError, RewardError, SettingsError
from align_anything.trainers.loops.offline import OfflineLoop
from tests.harness.notebooks import in_a_process
from tests.trainers.runs import text_rows

SHORT = {
    'log_type': 'none',
    'bf16': False,
    'ds_cfgs': 'ds_z0_config.json',
    'per_device_train_batch_size': 2,
    'gradient_accumulation_steps': 1,
    'gradient_checkpointing': False,
    'num_workers': 0,
    'model_max_length': 128,
    'epochs': 1,
    'save_total_limit': 0,
}
INSTRUCTION = {**SHORT, 'train_template': 'Instruction'}
ROWS = text_rows(6)


def left() -> tuple[int, bool, list[str], Any]:
    """Numbers in tensors, whether there is a process group, what a launcher sets, and what handles Ctrl-C."""
    gc.collect()
    numbers = sum(item.numel() for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter))
    told = sorted(name for name in os.environ if name in ('RANK', 'WORLD_SIZE', 'MASTER_PORT'))
    return numbers, torch.distributed.is_initialized(), told, signal.getsignal(signal.SIGINT)


class Told(align_anything.Callback):
    """Remembers what it was told, and stops at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.said: list[tuple[str, int]] = []

    def on_step(self, step: int, metrics: Any) -> str | None:
        assert math.isfinite(metrics['loss']) and 'seconds_per_step' in metrics
        self.said.append(('step', step))
        return 'stop' if step == self.stop_at else None

    def on_evaluation(self, step: int, metrics: Any) -> None:
        assert math.isfinite(metrics['loss'])
        self.said.append(('evaluation', step))

    def on_save(self, step: int, folder: Path) -> None:
        assert (folder / 'config.json').exists()
        self.said.append((folder.name, step))


def test_several_runs_in_one_process_leave_nothing_behind(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny('llama')

    def body() -> Any:
        before = left()
        found = []
        for stage in (0, 2, 3):
            settings = {**INSTRUCTION, 'ds_cfgs': f'ds_z{stage}_config.json', 'output_dir': tmp_path / str(stage)}
            result = align_anything.train('text_to_text', 'sft', model, ROWS, **settings)
            assert result.finished and result.folder == tmp_path / str(stage) / 'slice_end'
            assert list(result.metrics.index) == [1, 2, 3]
            found.append(result.metrics['train/loss'].tolist())
            assert left()[1:] == before[1:]
            # Tables and buffers of the libraries, and no weights: the model has 124 thousand.
            assert left()[0] - before[0] < 1000, stage
        policy = result.policy
        assert result.model is policy.model and result.processor is None
        assert result.tokenizer('sun')['input_ids']
        return found

    losses = in_a_process(body)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[2] == pytest.approx(losses[0], rel=1e-3)


def test_rows_of_every_kind_give_the_same_losses(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny('llama')
    file = tmp_path / 'rows.json'

    def body() -> Any:
        import datasets

        table = datasets.Dataset.from_list(ROWS)
        table.to_json(file)
        kinds: dict[str, Any] = {
            'path': file,
            'list': ROWS,
            'table': table,
            'splits': datasets.DatasetDict({'train': table, 'test': table}),
        }
        found = {}
        for name, dataset in kinds.items():
            result = align_anything.train(
                'text_to_text', 'sft', model, dataset, output_dir=tmp_path / name, max_steps=1, **INSTRUCTION
            )
            found[name] = result.metrics['train/loss'].tolist()
        result = align_anything.train(
            'text_to_text', 'sft', model, table.to_iterable_dataset(), streaming=True, max_steps=1,
            output_dir=tmp_path / 'stream', **INSTRUCTION,
        )  # fmt: skip
        mixed = align_anything.train(
            'text_to_text', 'sft', model, [ROWS[:2], file], output_dir=tmp_path / 'mixed', **INSTRUCTION
        )
        return found, len(result.metrics), len(mixed.metrics)

    found, streamed, mixed = in_a_process(body)
    assert len({tuple(losses) for losses in found.values()}) == 1, found
    assert (streamed, mixed) == (1, 4)


def test_pictures_and_sounds_in_rows(tiny: Callable[..., Path], tmp_path: Path) -> None:
    picture = [{'question': 'what', 'answer': 'red', 'image': Image.new('RGB', (40, 30), 'red')} for _ in range(4)]
    wave = {'array': np.zeros(8000, dtype=np.float32), 'sampling_rate': 16000}
    sound = [{'question': 'what', 'answer': 'nothing', 'audio': wave} for _ in range(4)]
    models = {'image': tiny('qwen2_5_vl'), 'audio': tiny('qwen2_audio')}

    def body() -> Any:
        found = []
        for kind, rows in (('image', picture), ('audio', sound)):
            result = align_anything.train(
                f'text_{kind}_to_text', 'sft', models[kind], rows, output_dir=tmp_path / kind, max_steps=1,
                **{**INSTRUCTION, 'model_max_length': 512},
            )  # fmt: skip
            answers = result.policy.generate(
                [[{'role': 'user', 'content': [{'type': kind, kind: rows[0][kind]}, {'type': 'text', 'text': 'what'}]}]]
            )
            found.append((result.processor is not None, len(answers[0])))
        return found

    assert in_a_process(body) == [(True, 1)] * 2


def test_callbacks_are_told_and_stop_a_run_that_goes_on_later(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny('llama')

    def body() -> Any:
        settings = {**INSTRUCTION, 'eval_template': 'Instruction', 'eval_strategy': 'epoch', 'output_dir': tmp_path}
        watching = Told(stop_at=2)
        stopped = align_anything.train(
            'text_to_text', 'sft', model, ROWS, eval_dataset=ROWS[:2], callbacks=watching, **settings
        )
        assert not stopped.finished and stopped.folder == tmp_path / 'slice_2'
        later = Told()
        result = align_anything.train(
            'text_to_text', 'sft', model, ROWS, eval_dataset=ROWS[:2], callbacks=[later], resume='auto', **settings
        )
        assert result.finished and 'eval/loss' in result.metrics
        return watching.said, later.said, list(result.metrics.index)

    first, later, steps = in_a_process(body)
    assert first == [('step', 1), ('step', 2), ('slice_2', 2)]
    assert later == [('step', 3), ('evaluation', 3), ('slice_end', 3)]
    assert steps == [1, 2, 3]


def test_a_callback_that_stops_after_an_epoch(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny('llama')

    class AfterEvaluation(align_anything.Callback):
        def on_evaluation(self, step: int, metrics: Any) -> str:
            return 'stop'

    def body() -> Any:
        settings = {**INSTRUCTION, 'epochs': 2, 'eval_template': 'Instruction', 'eval_strategy': 'epoch'}
        given = {'eval_dataset': ROWS[:2], 'output_dir': tmp_path, **settings}
        stopped = align_anything.train('text_to_text', 'sft', model, ROWS, callbacks=AfterEvaluation(), **given)
        result = align_anything.train('text_to_text', 'sft', model, ROWS, resume='auto', **given)
        return stopped.folder.name, list(result.metrics['eval/loss'].dropna().index), len(result.metrics)

    assert in_a_process(body) == ('slice_3', [3, 6], 6)


def test_the_stop_of_a_notebook_says_where_the_checkpoint_is(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny('llama')
    inner = OfflineLoop._step

    def pressed(self: OfflineLoop, loaded: Any) -> bool:
        if self.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(self, loaded)

    def body() -> Any:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before = left()
        OfflineLoop._step = pressed
        with pytest.raises(KeyboardInterrupt) as stopped:
            align_anything.train('text_to_text', 'sft', model, ROWS, output_dir=tmp_path, **INSTRUCTION)
        OfflineLoop._step = inner
        after = left()
        assert after[1:] == before[1:] and after[0] - before[0] < 1000
        result = align_anything.train(
            'text_to_text', 'sft', model, ROWS, output_dir=tmp_path, resume='auto', **INSTRUCTION
        )
        return str(stopped.value), len(result.metrics)

    said, steps = in_a_process(body)
    assert said == f"stopped; the last checkpoint is {tmp_path / 'slice_2'}, from which train(…, resume='auto') goes on"
    assert steps == 3


def test_a_reward_of_ones_own(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny('llama')

    def short(completions: Any, *, least: float = 0.0) -> list[float]:
        return [least - len(completion.response) / 100 for completion in completions]

    async def loud(completions: Any) -> list[float]:
        return [float(completion.response.isupper()) for completion in completions]

    def body() -> Any:
        settings = {**SHORT, 'max_new_tokens': 8, 'num_generations': 2, 'max_steps': 1, 'train_template': 'Prompts'}
        result = align_anything.train(
            'text_to_text', 'grpo', model, [{'prompt': 'sun'}, {'prompt': 'sea'}], reward=[short, loud, 'format'],
            reward_weights=[1.0, 0.5, 0.5], reward_kwargs={'short': {'least': 5.0}}, output_dir=tmp_path, **settings,
        )  # fmt: skip
        return {name for name in result.metrics if 'reward' in name}, result.metrics['train/reward'].tolist()

    names, (reward,) = in_a_process(body)
    assert {'train/reward/short', 'train/reward/loud', 'train/reward/format'} <= names
    assert 3 < reward < 6


def test_errors_are_those_of_the_command_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as found:
        align_anything.train(
            'text_to_text', 'dpo', 'm', ROWS, train_template='Instruction', lerning_rate=1, epochs='many', r=8
        )
    said = str(found.value)
    assert "train(lerning_rate=…): there is no key 'lerning_rate'. Did you mean 'learning_rate'" in said
    assert "train_cfgs.epochs = 'many' (train(epochs=…)): expected " in said
    assert 'logger_cfgs.output_dir' in said and 'lora_cfgs.r (train(r=…))' in said
    with pytest.raises(SettingsError, match="text_to_text has no algorithm 'dop'. Did you mean 'dpo'?"):
        align_anything.train('text_to_text', 'dop')
    with pytest.raises(SettingsError, match='rm_score trains nothing'):
        align_anything.train('text_to_text', 'rm_score')
    with pytest.raises(SettingsError, match=r'was given already by train\(model=…\)'):
        align_anything.train('text_to_text', 'sft', 'm', ROWS, model_name_or_path='n', output_dir=tmp_path)


def test_rows_and_rewards_that_cannot_be_used(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'train\(dataset\):2: entry 2 of the list is a str, no dict'):
        align_anything.train('text_to_text', 'sft', 'm', [ROWS[0], 'x'])
    with pytest.raises(DataError, match=r'train\(dataset\) is a set: give a path, a list of dicts'):
        align_anything.train('text_to_text', 'sft', 'm', {1, 2})
    with pytest.raises(SettingsError, match=r'train\(reward=…\): 3 is no function'):
        align_anything.train('text_to_text', 'grpo', 'm', ROWS, reward=3)
    model = tiny('llama')

    def body() -> Any:
        given = {**SHORT, 'output_dir': tmp_path}
        with pytest.raises(DataError, match=r"train\(dataset\)' has no rows"):
            align_anything.train('text_to_text', 'sft', model, [], train_template='Instruction', **given)
        with pytest.raises(DataError, match=r"'train\(dataset\)' is in memory: name, data_files"):
            align_anything.train('text_to_text', 'sft', model, ROWS, **{**INSTRUCTION, **given}, train_name='x')
        with pytest.raises(DataError, match=r'train\(dataset\):1'):
            align_anything.train('text_to_text', 'sft', model, [{'x': 1}], train_template='Instruction', **given)
        prompts = [{'prompt': 'sun'}] * 2
        online = {'train_template': 'Prompts', 'max_new_tokens': 4, 'num_generations': 2, **given}

        def wrong(completions: Any) -> list[float]:
            return []

        with pytest.raises(RewardError, match=r"reward 'wrong' returned 0 number\(s\) for"):
            align_anything.train('text_to_text', 'grpo', model, prompts, reward=wrong, **online)
        with pytest.raises(RewardError, match="unknown reward 'formt'. Did you mean 'format'?"):
            align_anything.train('text_to_text', 'grpo', model, prompts, reward='formt', **online)
        # And after all of that a run as any.
        result = align_anything.train(
            'text_to_text',
            'sft',
            model,
            ROWS,
            train_template='Instruction',
            max_steps=1,
            overwrite_output_dir=True,
            **given,
        )
        return result.finished

    assert in_a_process(body)


def test_a_list_is_not_changed_by_what_reads_it() -> None:
    from align_anything.datasets.lent_rows import LENT, held
    from align_anything.datasets.sources import load_rows

    rows = [{'messages': [{'role': 'user', 'content': 'x'}], 'numbers': [1, 2], 'picture': Image.new('RGB', (2, 2))}]
    with LENT.lend({'mine': held('mine', rows)}):
        opened = load_rows('mine')
        row = opened[0]
        assert row == rows[0] and row['picture'] is rows[0]['picture'] and opened.row_name(0) == 'mine:1'
        row['messages'][0]['content'] = 'y'
        row['messages'].append({})
        assert opened[0] == rows[0] and len(rows[0]['messages']) == 1
    with pytest.raises(DataError):
        load_rows('mine/not/there.json')
    assert LENT.get('mine') is None
