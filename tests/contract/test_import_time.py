"""Importing the package is free: no torch, no extras, well under a second. A run imports what it uses."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.core.collector import lasting
from tests.harness.fresh import python
from tests.trainers.runs import sft, text_rows, write_rows

PROBE = """
import json, sys, time
start = time.perf_counter()
import align_anything
seconds = time.perf_counter() - start
print(json.dumps({'seconds': seconds, 'modules': sorted(name for name in sys.modules if '.' not in name)}))
"""
HEAVY = {'torch', 'transformers', 'deepspeed', 'peft', 'datasets', 'numpy', 'pydantic', 'rich', 'vllm', 'wandb'}

# What a plain SFT run of a text model has no use for. Schedules of transformers import its trainer, that imports peft,
# and peft bitsandbytes and the compiler of torch.
UNUSED = (
    *('bitsandbytes', 'datasets', 'diffusers', 'fastapi', 'gradio', 'lm_eval', 'peft', 'timm', 'trl', 'vllm', 'wandb'),
    *('tensorboard', 'torch.utils.tensorboard', 'torch._inductor.compile_fx', 'mlflow', 'clearml', 'swanlab'),
    *('transformers.optimization', 'transformers.trainer', 'transformers.trainer_utils'),
    *(f'transformers.models.{name}.modeling_{name}' for name in ('clap', 'siglip', 't5', 'whisper')),
    'align_anything.models.composed.compose',
)
RUN = '''
import importlib.abc, importlib.machinery, json, sys
from align_anything.trainers.runs import begin
UNUSED, argv = json.loads(sys.argv[1]), sys.argv[2:]
# It draws the curves of a run that is over.
begin.plot_metrics = lambda folder: 'none'
asked = set()

class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that can be looked for, as transformers do, and not imported."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name in UNUSED else None

    def exec_module(self, module):
        asked.add(module.__name__)
        raise ImportError(f'the run imported {module.__name__}')

for name in [name for name in sys.modules if any(name == one or name.startswith(one + '.') for one in UNUSED)]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
from align_anything.trainers.text_to_text.sft import main
main(argv)
print(json.dumps(sorted(asked)))
'''


def probe(code: str) -> dict:
    """Runs `code` in a fresh interpreter and returns the JSON it prints."""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    # The best of three: a busy machine slows one run, never makes one quicker.
    results = [probe(PROBE) for _ in range(3)]
    assert min(result['seconds'] for result in results) < 1.0
    assert not HEAVY & set(results[0]['modules'])


def test_settings_load_without_the_model_libraries() -> None:
    code = 'import json, sys\nimport align_anything.configs.resolve\nprint(json.dumps(sorted(sys.modules)))'
    assert not {'transformers', 'deepspeed', 'peft'} & set(probe(code))


def a_run(folder: Path, model: Path) -> list[str]:
    rows = write_rows(folder / 'rows.jsonl', text_rows(4))
    return sft(folder / 'run', model, rows, max_steps=1, ds_cfgs='ds_z0_config.json')


def test_a_plain_run_imports_nothing_that_it_has_no_use_for(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Of what it imports itself; what the libraries that it has import, a process of its own shows."""
    done = python(RUN, json.dumps(UNUSED), *a_run(tmp_path, tiny('qwen2')), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.extended
def test_neither_do_the_libraries_of_a_plain_run(tiny: Callable[..., Path], tmp_path: Path) -> None:
    command = [sys.executable, '-X', 'importtime', '-m', 'align_anything.trainers.text_to_text.sft']
    done = subprocess.run([*command, *a_run(tmp_path, tiny('qwen2'))], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    before, step, _ = done.stderr.partition('step 1/1')
    imported = set(re.findall(r'^import time:.*\| +(\S+)$', before, re.MULTILINE))
    assert step and {'torch', 'transformers', 'deepspeed'} <= imported
    # DeepSpeed asks for mlflow, whoever has installed it.
    found = imported & {*UNUSED, 'matplotlib'} - {'mlflow'}
    assert not found, found


def test_what_is_imported_stays_out_of_garbage_collection() -> None:
    frozen, was = gc.get_freeze_count(), gc.isenabled()
    try:
        gc.enable()
        with lasting():
            assert not gc.isenabled()
            lists: list[list[int]] = [[] for _ in range(1000)]
        assert gc.isenabled() and gc.get_freeze_count() >= frozen + len(lists)
        with pytest.raises(ModuleNotFoundError), lasting():
            raise ModuleNotFoundError('x')
        assert gc.isenabled()
        gc.disable()
        with lasting():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        (gc.enable if was else gc.disable)()
