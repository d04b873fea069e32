"""The code in docs/extending.md works when it is put where it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r'```python\n# (\S+\.py)\n(.*?)```', re.DOTALL)

# Runs in a copy of the package to which the recipes were added.
PROBE = """
import json, math, sys
import torch
from align_anything.configs.resolve import resolve
from align_anything.datasets.template_registry import make_formatter

formatter = make_formatter('my_templates.py:Captions', {'question': 'Describe this.'})
conversation, meta = formatter.format_supervised_sample({'file': 'cat.png', 'caption': 'A cat.'})

from align_anything.models.pretrained_model import load_spec
spec = load_spec(sys.argv[1], model_max_length=128)
text = [{'type': 'text', 'text': 'hi'}], [{'type': 'text', 'text': 'hello'}]
runs = spec.render([{'role': 'user', 'content': text[0]}, {'role': 'assistant', 'content': text[1]}])

from align_anything.algorithms.base import ALGORITHMS
from align_anything.losses.focal import focal_loss
from align_anything.trainers.image_to_text.sft import PAIR
from align_anything.trainers.text_to_text import focal
argv = ['--gamma', '1.5', '--model_name_or_path', sys.argv[1], '--output_dir', 'out', '--train_datasets', 'rows.jsonl',
        '--train_template', 'my_templates.py:Captions']
known = {name: ALGORITHMS.get(name) for name in ALGORITHMS}
resolved = resolve('text_to_text', 'focal', ALGORITHMS.get('focal'), known, argv, {})
print(json.dumps({
    'conversation': conversation,
    'meta': meta,
    'spec': type(spec).__name__,
    'text': ''.join(run.text for run in runs),
    'gamma': resolved.cfgs.train_cfgs.gamma,
    'loss': float(focal_loss(torch.tensor([math.log(0.5), math.log(0.1)]), torch.tensor([1.0, 0.0]), 2.0)),
    'reads': sorted(PAIR.reads),
}))
"""


@pytest.fixture(scope='module')
def outcome(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> dict:
    """Puts every recipe where it says and returns what they do."""
    home = tmp_path_factory.mktemp('recipes')
    shutil.copytree(ROOT / 'align_anything', home / 'align_anything', ignore=shutil.ignore_patterns('__pycache__'))
    recipes = BLOCK.findall((ROOT / 'docs' / 'extending.md').read_text())
    assert len(recipes) == 7
    for name, code in recipes:
        target = home / name
        assert not target.exists(), f'{name} exists by now: choose another example'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(code)
    done = subprocess.run(
        [sys.executable, '-c', PROBE, str(tiny('mistral'))],
        cwd=home,
        env={**os.environ, 'PYTHONPATH': str(home)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_dataset(outcome: dict) -> None:
    assert outcome['conversation'] == [
        {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Describe this.'}]},
        {'role': 'assistant', 'content': 'A cat.'},
    ]
    assert outcome['meta'] == {'image': 'cat.png'}


def test_family(outcome: dict) -> None:
    assert outcome['spec'] == 'MistralSpec'
    assert '[INST] hi [/INST]' in outcome['text'] and 'hello' in outcome['text']


def test_algorithm(outcome: dict) -> None:
    assert outcome['gamma'] == 1.5
    # -(1 * (1 - 0.5)^2 * ln 0.5 + 0) = 0.25 * 0.6931
    assert outcome['loss'] == pytest.approx(0.173287, abs=1e-5)


def test_pair(outcome: dict) -> None:
    assert outcome['reads'] == ['image']
