"""Every key that only online algorithms have is read by the code that runs."""

from __future__ import annotations

import json

import pytest

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.sft import SFT
from align_anything.cli.leaves import find_run
from align_anything.configs.schema import build_run_schema, groups_of
from tests.trainers.runs import TEXT, sft, succeed, text_rows, write_rows
from tests.trainers.test_environments import WORLD
from tests.trainers.test_scoring import with_head
from tests.trainers.test_settings_read import record

# What NFT alone has is read by runs of denoisers, see tests/algorithms/test_nft.py and tests/trainers/test_nft_runs.py.
ONLINE = {name: kind for name, kind in known_algorithms().items() if kind.generates and kind.trains and name != 'nft'}
REWARD = 'def varied(completions):\n    return [float(sum(map(ord, item.response)) % 97) for item in completions]\n'


def keys_of(kind: type) -> set[str]:
    return {f'{name}.{key}' for name, group in groups_of(build_run_schema(kind)).items() for key in group.model_fields}


@pytest.fixture(scope='module')
def read(tiny, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What is read in runs that between them use everything."""
    folder = tmp_path_factory.mktemp('runs')
    rows = write_rows(folder / 'rows.jsonl', text_rows(4))
    judge = folder / 'judge'
    judge.mkdir()
    with_head(tiny('qwen2'), judge)
    (folder / 'rewards.py').write_text(REWARD)
    found: set[str] = set()

    def note(name: str, **settings: object) -> None:
        given = {
            'reward_functions': f'[{folder}/rewards.py:varied]',
            'max_new_tokens': 6,
            'num_generations': 2,
            'max_steps': 2,
            'log_completions': 1,
            **settings,
        }
        before = record(folder / f'{name}.json')
        succeed(sft(folder / name, tiny('qwen2'), rows, **given), 1, TEXT, before, find_run('text_to_text', name)[1])
        found.update(json.loads((folder / f'{name}.json').read_text()))

    note(
        'saferlhf',
        cost_model_name_or_path=judge,
        kl_target=1.0,
        ptx_datasets=rows,
        ptx_template='Instruction',
        overlong_buffer=2,
    )
    note('grpo', reward_model_name_or_path=judge)
    note('multi_ppo', advantage_estimator='rloo')
    note('online_dpo')
    (folder / 'world.py').write_text(WORLD)
    note(
        'rloo',
        environment=f'{folder}/world.py:World',
        environment_workers=1,
        environment_timeout=60,
        max_turns=2,
        stop='[a, e, i, o, u, s]',
    )
    return found


def test_every_key_of_an_online_algorithm_is_read(read: set[str]) -> None:
    keys = set().union(*(keys_of(kind) for kind in ONLINE.values())) - keys_of(SFT)
    # The service and vLLM are asked in tests of their own, and denoising steps that drift.
    elsewhere = {key for key in keys if key.split('.')[1].startswith(('remote_rm_', 'vllm_', 'max_drift'))}
    assert len(keys - elsewhere) > 60
    assert sorted(keys - elsewhere - read) == []
