"""Every key of the schema is read by the code that runs: a setting that nothing reads would be a lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from pydantic import Field

from align_anything.algorithms.sft import SFT
from align_anything.configs.schema import Cfgs, build_run_schema, groups_of
from align_anything.testing.emitting import write_digit_rows
from align_anything.trainers.pairs import PAIRS, Pair
from tests.trainers.runs import IMAGE, TEXT, Hook, nothing, poison, sft, succeed, text_rows, write_rows

GENERATING = {
    *('rollout_steps', 'eval_rollout_steps', 'same_noise_in_group', 'sde_kernel', 'noise_level', 'kl_form'),
    *('sde_window', 'sde_window_range', 'sde_window_slides_every'),
}


class WithMore(SFT):
    """An algorithm with hyper-parameters of its own, one of which it forgets to use."""

    used: float = Field(1.0, description='Weight of the loss.')
    unread: int = Field(0, description='Nothing.')

    def coefficients(self) -> dict[str, float]:
        return {'loss': self.used}


def record(path: Path, also: Hook = nothing) -> Hook:
    """Notes each attribute that is read of the settings once they are resolved, whoever reads it and however."""

    def before(rank: int) -> None:
        also(rank)
        from align_anything.trainers import launch

        resolve, read = launch.resolve, set()

        def watched(cfgs: Cfgs, name: str) -> Cfgs:
            class Watched(type(cfgs)):
                def __getattribute__(self, key: str):
                    if key in type(cfgs).model_fields:
                        read.add(f'{name}.{key}')
                        path.write_text(json.dumps(sorted(read)))
                    return super().__getattribute__(key)

            object.__setattr__(cfgs, '__class__', Watched)
            return cfgs

        def resolved(*given, **how):
            result = resolve(*given, **how)
            watched(result.algorithm, 'train_cfgs')
            for name in type(result.cfgs).model_fields:
                watched(getattr(result.cfgs, name), name)
            return result

        launch.resolve = resolved

    return before


def write_episodes(folder: Path) -> Path:
    """Writes episodes of three steps of an arm, each with a picture and two numbers."""
    folder.mkdir()
    Image.new('RGB', (28, 28), 'red').save(folder / 'seen.png')
    shown = {'type': 'image', 'image': 'seen.png'}

    def step(number: int) -> list[dict[str, object]]:
        action = {'type': 'action', 'action': [0.1 * number, 1.0 - number]}
        return [{'role': 'user', 'content': [shown]}, {'role': 'assistant', 'content': [action]}]

    rows = [{'messages': [turn for number in range(3) for turn in step(number)]} for _ in range(4)]
    return write_rows(folder / 'episodes.jsonl', rows)


@pytest.fixture(scope='module')
def read(tiny, emitting, tmp_path_factory) -> set[str]:
    """What is read in a handful of runs that between them use everything."""
    folder = tmp_path_factory.mktemp('runs')
    rows = write_rows(folder / 'rows.jsonl', text_rows(4))
    found: set[str] = set()

    def note(name: str, model: Path, pair: Pair = TEXT, also: Hook = nothing, **settings: object) -> None:
        argv = sft(folder / name, model, rows, **settings)
        succeed(argv, 1, pair, record(folder / f'{name}.json', also), WithMore)
        found.update(json.loads((folder / f'{name}.json').read_text()))

    evaluation = {'eval_datasets': rows, 'eval_template': 'Instruction', 'eval_strategy': 'steps', 'eval_interval': 1}
    note('plain', tiny('llama'), save_total_limit=1, eval_tasks='[cer]', eval_max_new_tokens=4, **evaluation)
    note('image', tiny('llava'), IMAGE, lr_groups='{mm_proj: 1e-3}')
    drawn = {
        'train_datasets': write_digit_rows(folder / 'digits', 4),
        'train_template_kwargs': '{answers: image, prompt: question, response: picture}',
    }
    note('drawing', emitting('drawing'), PAIRS['text_to_image'], **drawn)
    pipeline = {
        'model_max_length': None,
        'train_template_kwargs': '{images: ""}',
        'template': 'Messages',
        'preview_prompts': '[a digit]',
        'preview_steps': 1,
        'ema_decay': 0.9,
    }
    digits = {'train_datasets': drawn['train_datasets'], 'eval_datasets': drawn['train_datasets']}
    shown = {**evaluation, **digits, 'eval_template': 'Messages', 'eval_template_kwargs': '{images: ""}'}
    note('denoising', tiny('sd3'), PAIRS['text_to_image'], **pipeline, **shown)
    note('stream', tiny('llama'), streaming=True, max_steps=2)
    note('budget', tiny('llama'), max_length_per_batch=100, group_by_length=True)
    note('lora', tiny('llama'), use_lora=True)
    note('qlora', tiny('llama'), use_lora=True, use_bnb=True)
    note('sharded', tiny('llama'), engine='fsdp', ds_cfgs=None)
    acting = {'train_datasets': write_episodes(folder / 'arm'), 'template': 'Messages', 'action_tokens': 'tail'}
    cut = {'sliding_window': 2, 'init_prob_sample_last_steps': 0.5, 'max_steps': 1, 'model_max_length': 256}
    note('acting', tiny('qwen2_5_vl'), PAIRS['text_video_to_action'], **acting, **cut)
    note('poisoned', tiny('llama'), also=poison(1, rank_of_it=0), nonfinite_loss='skip')
    return found


def test_every_key_of_the_schema_is_read(read):
    keys = {f'{name}.{key}' for name, group in groups_of(build_run_schema(SFT)).items() for key in group.model_fields}
    assert len(keys) > 80
    # What stands for other settings is read while they are resolved, which tests/trainers/test_composed_runs.py and
    # tests/configs/test_incumbent_actions.py show.
    expanded = {'train_cfgs.stage', 'data_cfgs.val_datasets'}
    # Read where denoisers generate, which tests/trainers/test_denoising_runs.py shows.
    generating = {f'diffusion_cfgs.{key}' for key in GENERATING}
    assert sorted(keys - read) == sorted(expanded | generating)


def test_a_key_that_nothing_reads_is_found_out(read):
    """Saving all settings to the output folder, or comparing them on resume, is no reading."""
    assert {'used', 'unread'} <= WithMore.model_fields.keys()
    assert 'train_cfgs.unread' not in read
    assert 'train_cfgs.used' in read
