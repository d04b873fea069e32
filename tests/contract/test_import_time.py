"""Importing the package is free: no torch, no extras, well under a second."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = """
import json, sys, time
start = time.perf_counter()
import align_anything
seconds = time.perf_counter() - start
print(json.dumps({'seconds': seconds, 'modules': sorted(name for name in sys.modules if '.' not in name)}))
"""
HEAVY = {'torch', 'transformers', 'deepspeed', 'peft', 'datasets', 'numpy', 'pydantic', 'rich', 'vllm', 'wandb'}


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
