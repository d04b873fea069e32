"""The code in docs/extending.md works when it is put where it says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.harness.fresh import python
from tests.trainers.runs import warm

ROOT = Path(__file__).resolve().parents[2]

BLOCK = re.compile(r'```python\n# (\S+\.py)\n(.*?)```', re.DOTALL)
ROW = re.compile(r'```python\n# (\S+\.py), among the others\n(.*?)```', re.DOTALL)
FIRST_ROW = "        Pair('text_to_text'),\n"

# Run in a copy of the package to which the recipes were added, one after the other in one warm process.
PROBE = """
import json, math, sys
import torch
from align_anything.datasets.template_registry import make_formatter
from align_anything.models.pretrained_model import load_spec

text_model, image_model, common = sys.argv[1], sys.argv[2], sys.argv[3:]

formatter = make_formatter('my_templates.py:Captions', {'question': 'Describe this.'})
conversation, meta = formatter.format_supervised_sample({'file': 'cat.png', 'caption': 'A cat.'})
spec = load_spec(text_model, model_max_length=128)
text = [{'type': 'text', 'text': 'hi'}], [{'type': 'text', 'text': 'hello'}]
[runs] = spec.render([{'role': 'user', 'content': text[0]}, {'role': 'assistant', 'content': text[1]}])

from align_anything.losses.focal import focal_loss
from align_anything.algorithms.sft import SFT
from align_anything.trainers.image_to_text import sft
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.launch import settings_of
from align_anything.trainers.text_to_text import focal

sys.argv = ['focal', '--gamma', '1.5', '--model_name_or_path', text_model, '--train_datasets', 'texts.jsonl',
            '--train_template', 'Instruction', '--output_dir', 'focal_run', *common]
focal.main()
sys.argv = ['sft', '--model_name_or_path', image_model, '--train_datasets', 'pictures.jsonl', '--train_template',
            'my_templates.py:Captions', '--train_template_kwargs.question', 'Describe this.', '--output_dir', 'sft_run',
            *common]
sft.main()
print(json.dumps({
    'conversation': conversation,
    'meta': meta,
    'spec': type(spec).__name__,
    'text': ''.join(run.text for run in runs),
    'loss': float(focal_loss(torch.tensor([math.log(0.5), math.log(0.1)]), torch.tensor([1.0, 0.0]), 2.0)),
    'reads': sorted(PAIRS['image_to_text'].reads),
    'frozen': settings_of(PAIRS['image_to_text'], SFT, sys.argv[1:], {}).origins['train_cfgs.freeze_vision_tower'],
}))
"""
COMMON = {
    'ds_cfgs': 'ds_z0_config.json',
    'bf16': 'False',
    'log_type': 'none',
    'max_steps': '3',
    'num_workers': '0',
    'save_total_limit': '0',
    'per_device_train_batch_size': '2',
    'learning_rate': '1e-2',
}


@pytest.fixture(scope='module')
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with every recipe where it says, and data for it."""
    home = tmp_path_factory.mktemp('recipes')
    shutil.copytree(ROOT / 'align_anything', home / 'align_anything', ignore=shutil.ignore_patterns('__pycache__'))
    page = (ROOT / 'docs' / 'extending.md').read_text()
    [(table, row)] = ROW.findall(page)
    rows = (home / table).read_text()
    assert rows.count(FIRST_ROW) == 1
    (home / table).write_text(rows.replace(FIRST_ROW, FIRST_ROW + row))
    recipes = BLOCK.findall(page)
    assert len(recipes) == 7
    for name, code in recipes:
        target = home / name
        assert not target.exists(), f'{name} exists by now: choose another example'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(code)
    Image.new('RGB', (40, 30), 'red').save(home / 'cat.png')
    (home / 'pictures.jsonl').write_text('{"file": "cat.png", "caption": "A cat."}\n' * 4)
    (home / 'texts.jsonl').write_text('{"instruction": "Greet me.", "output": "Good day."}\n' * 4)
    return home


@pytest.fixture(scope='module')
def outcome(home: Path, tiny: Callable[..., Path]) -> dict:
    """What every recipe does on tiny models."""
    common = [part for key, value in COMMON.items() for part in (f'--{key}', value)]
    warm()
    done = python(PROBE, str(tiny('mistral')), str(tiny('llava')), *common, folder=home, path=[home])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def losses(folder: Path) -> list[float]:
    """The training losses that a run wrote, step by step."""
    records = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    return [record['train/loss'] for record in records if 'train/loss' in record]


def test_dataset(outcome: dict) -> None:
    assert outcome['conversation'] == [
        {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Describe this.'}]},
        {'role': 'assistant', 'content': 'A cat.'},
    ]
    assert outcome['meta'] == {'image': 'cat.png'}


def test_family(outcome: dict) -> None:
    assert outcome['spec'] == 'MistralSpec'
    assert '[INST] hi [/INST]' in outcome['text'] and 'hello' in outcome['text']


def test_algorithm(outcome: dict, home: Path) -> None:
    # -(1 * (1 - 0.5)^2 * ln 0.5 + 0) = 0.25 * 0.6931
    assert outcome['loss'] == pytest.approx(0.173287, abs=1e-5)
    assert 'gamma: 1.5' in (home / 'focal_run' / 'settings.yaml').read_text()
    first, _, third = losses(home / 'focal_run')
    assert 0 < third < first
    assert (home / 'focal_run' / 'slice_end' / 'model.safetensors').exists()


def test_pair(outcome: dict, home: Path) -> None:
    assert (outcome['reads'], outcome['frozen']) == (['image'], 'pair image_to_text')
    first, _, third = losses(home / 'sft_run')
    assert 0 < third < first
    assert not (home / 'sft_run' / 'skipped_samples.jsonl').exists()
