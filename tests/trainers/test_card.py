"""The card beside an exported model: what it is made of, how to load it, and whose words it keeps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from align_anything.algorithms.cost_model import CostModel
from align_anything.algorithms.dpo import DPO
from align_anything.algorithms.rm import RM
from align_anything.cli.merging import merge_adapter
from align_anything.configs.schema import DataCfgs, LoraCfgs, ModelCfgs, RunCfgs, TrainCfgs
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.reporting.card import Trained, edited, hub_base, portable, shown_name, write_card
from align_anything.reporting.metrics import MetricsWriter
from tests.harness.fresh import python
from tests.trainers.runs import sft, succeed, text_rows, write_rows

# Scores 3 and 5 of chosen answers, 1 and 3 of rejected ones: their mean is 3, that of the squares 11.
EVALUATION = {'chosen_reward': 4.0, 'rejected_reward': 2.0, 'squared_score': 11.0, 'reward_accuracy': 0.75}


@pytest.fixture
def spec(tiny: Callable[..., Path]) -> FamilySpec:
    return load_spec(tiny('qwen2'))


def cfgs_of(chat_template: str | None = None, **groups: Any) -> RunCfgs:
    return RunCfgs(model_cfgs=ModelCfgs(model_name_or_path='some/model', chat_template=chat_template), **groups)


def card_of(
    folder: Path, spec: FamilySpec, algorithm: Any = DPO, cfgs: RunCfgs | None = None, **more: Any
) -> ModelCard:
    """The card of a model in `folder / 'model'`, of a run in `folder`, read as the hub reads it."""
    (folder / 'model').mkdir(exist_ok=True)
    run = Trained(cfgs or cfgs_of(), algorithm(), spec, folder, **{'step': 7, 'evaluation': {}} | more)
    write_card(folder / 'model', run, earlier=folder / 'earlier')
    return ModelCard.load(folder / 'model' / 'README.md')


def code_of(folder: Path) -> str:
    return re.findall(r'```python\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL)[0]


@pytest.mark.parametrize(('algorithm', 'title'), [(RM, '# Reward model'), (CostModel, '# Cost model')])
def test_a_model_that_scores_says_their_range(algorithm: Any, title: str, spec: FamilySpec, tmp_path: Path) -> None:
    card = card_of(tmp_path, spec, algorithm, evaluation=EVALUATION)
    assert title in card.text and f'`{algorithm.name}`' in card.text and '`some/model`' in card.text
    assert spec.renderer.template.strip() in card.text and 'is_reward_model=True' in card.text
    assert 'mean 3.000 and the standard deviation 1.414' in card.text and '75.0% of the pairs' in card.text
    assert card.data.tags == ['align-anything', algorithm.name, 'reward-model']
    numbers = json.loads((tmp_path / 'model' / 'scores.json').read_text())
    assert numbers.pop('std') == pytest.approx(2**0.5)
    assert numbers == {'step': 7, 'mean': 3.0, 'chosen_mean': 4.0, 'rejected_mean': 2.0, 'accuracy': 0.75}


@pytest.mark.parametrize('evaluation', [{}, {'loss': 0.5}])
def test_one_that_was_not_measured_claims_no_range(
    evaluation: dict[str, float], spec: FamilySpec, tmp_path: Path
) -> None:
    card = card_of(tmp_path, spec, RM, evaluation=evaluation)
    assert 'range of its scores is unknown' in card.text
    assert [path.name for path in (tmp_path / 'model').iterdir()] == ['README.md']


def test_what_it_was_trained_on_with_what(spec: FamilySpec, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'my_rows.jsonl', text_rows(1))
    template = write_rows(tmp_path / 'mine.py', []).as_posix()
    data = DataCfgs(
        train_datasets=['org/data', str(rows)],
        train_template=['Instruction', f'{template}:Mine'],
        train_split=['train[:10%]', None],
        train_size=[None, 50],
        eval_datasets='org/held-out',
        eval_template='Messages',
    )
    train = TrainCfgs(learning_rate=3e-6, epochs=2, resume=str(tmp_path), seed=42)
    # A template as text is no path, however long it is and whatever stands in it.
    chat = f'{{{{ messages }}}}</s>/{"x" * 5000}'
    cfgs = cfgs_of(train_cfgs=train, data_cfgs=data, lora_cfgs=LoraCfgs(use_lora=True, r=8), chat_template=chat)
    card = card_of(tmp_path, spec, cfgs=cfgs)
    assert card.data.to_dict() == {
        'base_model': 'some/model',
        'base_model_relation': 'finetune',
        'datasets': ['org/data'],
        'library_name': 'transformers',
        'tags': ['align-anything', 'dpo'],
    }
    for row in (
        '| algorithm | `dpo` |',
        '| trained on | `org/data`, split `train[:10%]`, template `Instruction` |',
        '| trained on | `my_rows.jsonl`, the first 50 rows, template `mine.py:Mine` |',
        '| evaluated on | `org/held-out`, template `Messages` |',
        '| optimizer steps | 7 |',
    ):
        assert f'\n{row}\n' in card.text
    settings = card.text.partition('```yaml\n')[2].partition('```')[0]
    assert 'learning_rate: 3.0e-06' in settings and 'epochs: 2' in settings and 'seed: 42' in settings
    assert 'r: 8' in settings and 'eval_interval' not in settings, 'no defaults'
    assert chat in settings
    assert str(tmp_path) not in card.content, 'no folders of this machine'


def test_the_ends_of_the_curves_up_to_the_step(spec: FamilySpec, tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in range(1, 10):
        more = {} if step < 3 else {'reward_accuracy': 0.1 * step}
        writer.log(step, {'loss': 1 / step, 'skipped': 0.0, **more}, timings={'tokens_per_second': step})
        if step in (4, 8):
            writer.log(step, {'loss': 2.0 * step}, prefix='eval')
    writer.close()
    card = card_of(tmp_path, spec)
    table = card.text.partition('| metric |')[2].partition('\n\n')[0].splitlines()[2:]
    assert table == ['| loss | 1 | 0.1429 | 8 |', '| reward_accuracy | 0.3 | 0.7 |  |']


def test_text_of_others_stays_in_its_block(spec: FamilySpec, tmp_path: Path) -> None:
    spec.renderer.template = '{{ x }}\n```\n# Not a title\n````\n<b>'
    text = card_of(tmp_path, spec, RM).text
    assert f'\n`````jinja\n{spec.renderer.template}\n`````\n' in text


def test_a_card_that_was_edited_is_kept(spec: FamilySpec, tmp_path: Path) -> None:
    card = card_of(tmp_path, spec)
    own = tmp_path / 'model' / 'README.md'
    assert not edited(own) and not edited(tmp_path / 'none' / 'README.md')
    shutil.copytree(tmp_path / 'model', tmp_path / 'earlier')
    assert '| optimizer steps | 8 |' in card_of(tmp_path, spec, step=8).text, 'ours is written anew'
    for words in (card.content.replace('# ', '# Our '), '# A card of our own\n'):
        (tmp_path / 'earlier' / 'README.md').write_text(words)
        assert edited(tmp_path / 'earlier' / 'README.md')
        card_of(tmp_path, spec, step=9)
        assert own.read_text() == words


def test_paths_lose_their_folders(tmp_path: Path) -> None:
    (tmp_path / 'mine.py').touch()
    for value, told in (
        (f'{tmp_path}/mine.py', 'mine.py'),
        (f'{tmp_path}/mine.py:fair', 'mine.py:fair'),
        ('/gone/since/then.json', 'then.json'),
        ('org/model', 'org/model'),
        ('text\n/with lines', 'text\n/with lines'),
    ):
        assert portable({'key': [value]}) == {'key': [told]}


@pytest.mark.parametrize(
    ('name', 'shown', 'base'),
    [
        ('org/model', 'org/model', 'org/model'),
        ('gpt2', 'gpt2', 'gpt2'),
        ('{here}/local', 'local', None),
        ('{here}/first/slice_end', 'first', None),
        ('{here}/trained', 'trained', 'org/under-it'),
        ('{here}/adapter', 'adapter', 'org/under-that'),
        ('{here}/broken', 'broken', None),
    ],
)
def test_the_base_that_the_hub_knows(name: str, shown: str, base: str | None, tmp_path: Path) -> None:
    for folder in ('local', 'first/slice_end', 'trained', 'adapter', 'broken'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'trained' / 'README.md').write_text('---\nbase_model: org/under-it\n---\n')
    (tmp_path / 'broken' / 'README.md').write_text('---\nbase_model: [\n---\n')
    (tmp_path / 'adapter' / 'adapter_config.json').write_text('{"base_model_name_or_path": "org/under-that"}')
    name = name.format(here=tmp_path)
    assert (shown_name(name), hub_base(name)) == (shown, base)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / 'rows.jsonl', text_rows(8))


def test_a_run_writes_a_card_whose_code_loads_the_model(
    tiny: Callable[..., Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / 'out'
    saves = {'save_interval': 2, 'save_total_limit': 1}
    succeed(sft(out, tiny('qwen2'), rows, **saves))
    monkeypatch.chdir(out / 'slice_end')
    known: dict[str, Any] = {}
    exec(code_of(out / 'slice_end'), known)
    assert type(known['model']).__name__ == 'Qwen2ForCausalLM' and known['tokenizer'].chat_template
    text = (out / 'slice_end' / 'README.md').read_text()
    assert '| optimizer steps | 4 |' in text and '| loss | ' in text and str(tmp_path) not in text
    # A person edits both; going on from the one does not fail, and ends with the words of the other.
    (out / 'slice_2' / 'README.md').write_text('# Half-way')
    (out / 'slice_end' / 'README.md').write_text('# The best model')
    assert 'after step 2 of 4' in succeed(sft(out, tiny('qwen2'), rows, '--resume', 'auto', **saves))
    assert (out / 'slice_end' / 'README.md').read_text() == '# The best model'


def test_the_card_of_an_adapter_that_scores_has_it_merged_first(spec: FamilySpec, tmp_path: Path) -> None:
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'adapter_config.json').write_text('{"base_model_name_or_path": "some/model"}')
    card = card_of(tmp_path, spec, RM)
    assert '`align-anything merge . merged`' in card.text
    # Whole models alone can be loaded to score.
    assert "load_pretrained_models('merged', is_reward_model=True)" in code_of(tmp_path / 'model')


def test_an_adapter_and_what_is_merged_of_it_have_cards_too(
    tiny: Callable[..., Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / 'out'
    succeed(sft(out, tiny('llava'), rows, '--use_lora', 'True', '--lora_dropout', '0'))
    monkeypatch.chdir(out / 'slice_end')
    adapted: dict[str, Any] = {}
    exec(code_of(out / 'slice_end'), adapted)
    card = ModelCard.load(out / 'slice_end' / 'README.md')
    assert card.data.library_name == 'peft' and card.data.tags == ['align-anything', 'sft', 'lora']
    assert 'needs peft' in card.text and 'More Information Needed' not in card.content
    merge_adapter(out / 'slice_end', tmp_path / 'merged')
    monkeypatch.chdir(tmp_path / 'merged')
    merged: dict[str, Any] = {}
    exec(code_of(tmp_path / 'merged'), merged)
    # The adapter is in force in both: the same answers.
    ids = adapted['processor'].tokenizer('sun sea tree', return_tensors='pt')
    with torch.no_grad():
        one, other = (known['model'].float().eval()(**ids).logits for known in (adapted, merged))
    assert torch.allclose(one, other, atol=1e-4)
    whole = ModelCard.load(tmp_path / 'merged' / 'README.md')
    assert whole.data.library_name == 'transformers' and whole.data.tags == ['align-anything', 'sft']
    assert whole.text.partition('## Training')[2].strip() == card.text.partition('## Training')[2].strip()
    assert 'needs peft' not in whole.text and not edited(tmp_path / 'merged' / 'README.md')


def test_the_card_of_a_composed_model_has_its_classes_made_known(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny('composed'), tmp_path / 'model')
    card_of(tmp_path, load_spec(tmp_path / 'model'))
    monkeypatch.chdir(tmp_path / 'model')
    code = code_of(tmp_path / 'model')
    # Here they are known, so that the code alone tells nothing.
    code += '\nassert type(model).__name__.startswith("Composed")'
    made_known = 'from align_anything.models.composed.register import register\n'
    assert made_known in code
    done = python(code, folder=tmp_path / 'model')
    assert done.returncode == 0, done.stderr
    done = python(code.replace(made_known, 'register = print\n'), folder=tmp_path / 'model')
    assert done.returncode == 1 and '`composed`' in done.stderr, done.stderr
