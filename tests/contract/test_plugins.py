"""A package like that of docs/extending.md brings a template, a reward, an algorithm and a family by entry points."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.algorithms.base import TASKS
from align_anything.core.errors import ModelError
from align_anything.core.plugins import Plugins
from align_anything.models import families
from align_anything.trainers.runs import data
from tests.harness.fresh import python
from tests.harness.packages import lay_package

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
PROJECT = re.compile(r'```toml\n# pyproject\.toml\n(.*?)```', re.DOTALL)
RECIPE = r'```python\n# {}\n(.*?)```'

REWARDS = '''
def brevity(completions, *, limit: int = 5):
    """1 for a response within `limit` characters."""
    return [float(len(completion.response) <= limit) for completion in completions]
'''
# Everything by name in one process, and a formatter that travels as to a data worker.
PROBE = """
import json, pickle, sys

import align_anything, align_anything.core.registry
early = [name for name in sys.modules if name.split('.')[0] == 'captions']
from align_anything.algorithms.base import ALGORITHMS, known_algorithms
from align_anything.cli.leaves import find_run
from align_anything.datasets import get_template, make_formatter
from align_anything.models.families import family_names
from align_anything.models.pretrained_model import load_spec
from align_anything.rewards.base import get_reward, reward_names

pair, algorithm = find_run('text_to_text', 'focal')
print(json.dumps({
    'early': early,
    'template': get_template('Captions').__module__,
    'travelled': type(pickle.loads(pickle.dumps(make_formatter('Captions')))).__module__,
    'reward': get_reward('brevity').__module__,
    'algorithm': [algorithm.__module__, algorithm is known_algorithms()['focal'], pair.name],
    'family': type(load_spec(sys.argv[1], model_max_length=128)).__module__,
    'listed': ['brevity' in reward_names(), 'focal' in ALGORITHMS, 'mistral' in family_names()],
}))
"""
# What asking for one name of each kind says, an error being the answer.
ERRORS = """
import json

from align_anything.algorithms.base import ALGORITHMS
from align_anything.core.errors import AlignAnythingError
from align_anything.datasets import get_template
from align_anything.models.families import family_module
from align_anything.rewards.base import get_reward


def said(ask, name):
    try:
        return f'{ask(name)!r} was found'
    except AlignAnythingError as error:
        return f'{type(error).__name__}: {error}'


asked = {
    'template': (get_template, 'GSM8K'), 'reward': (get_reward, 'math'), 'algorithm': (ALGORITHMS.get, 'sft'),
    'family': (family_module, 'llava'), 'broken family': (family_module, 'mistral'),
}
print(json.dumps({kind: said(*question) for kind, question in asked.items()}))
"""

# Modules of one package: things that pass for what they are not, beside a good one and ones that cannot be imported.
ODD = """
from typing import ClassVar

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.sft import SFT


class Good(SFT):
    name: ClassVar[str] = 'good'


class Nameless(Algorithm):
    task: ClassVar[str] = 'supervised'


class Tasked(SFT):
    name: ClassVar[str] = 'tasked'
    task: ClassVar[str] = 'guessing'


class Scored(SFT):
    name: ClassVar[str] = 'scored'
    scores: ClassVar[str] = 'letters'


class Refers(SFT):
    name: ClassVar[str] = 'refers'
    refers: ClassVar[bool] = True
"""
ODD_FAMILY = """
from align_anything.models.family import FamilySpec

MODEL, SPEC = FamilySpec, 'FamilySpec'
"""
# What a run, and what lists of everything, say beside such a package.
BESIDE = """
import contextlib, importlib, io, json, sys

from align_anything.algorithms.base import find_algorithm, known_algorithms
from align_anything.cli.families import families
from align_anything.cli.leaves import find_run, runs
from align_anything.cli.templates import described_templates
from align_anything.core.errors import AlignAnythingError
from align_anything.datasets import get_template
from align_anything.datasets.formatters.base import templates_with
from align_anything.models import families as of_models
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.checks import check_reference


def said(ask, *given):
    try:
        return f'{ask(*given)!r} was found'
    except AlignAnythingError as error:
        return str(error)


def checked(name):
    run = settings_of(PAIRS['text_to_text'], find_algorithm(name), sys.argv[1:], {})
    return check_reference(run.cfgs, run.algorithm)


find_algorithm('sft')
imported = [name for name in ('odd', 'broken') if name in sys.modules]
with contextlib.redirect_stdout(io.StringIO()) as help:
    try:
        importlib.import_module('align_anything.trainers.text_to_text.sft').main(['--help'])
    except SystemExit as end:
        code = end.code
print(json.dumps({
    'imported': imported,
    'help': [code, 'learning_rate' in help.getvalue()],
    'unknown': said(settings_of, PAIRS['text_to_text'], find_algorithm('sft'), ['--no_such_key', '1'], {}),
    'known': sorted(known_algorithms()),
    'runs': runs()['text_to_text'],
    'templates': [entry['name'] for entry in described_templates()],
    'with': templates_with('check_equal'),
    'families': [family.model_type for family in families()],
    'said': {name: said(find_run, 'text_to_text', name) for name in
             ('good', 'zzz', 'nameless', 'other', 'tasked', 'scored')},
    'checked': {name: said(checked, name) for name in ('good', 'refers')},
    'template': said(get_template, 'Torn'),
    'family': said(of_models.family_module, 'odd-family'),
    'dotted': said(of_models.family_module, 'no.such'),
}))
"""


def recipe(path: str) -> str:
    """Returns the code block of docs/extending.md for a file."""
    return re.search(RECIPE.format(re.escape(path)), (ROOT / 'docs' / 'extending.md').read_text(), re.DOTALL)[1]


def answer(site: Path, code: str, *words: str) -> Any:
    done = python(code, *words, folder=site, path=[site])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the import path with the package of the document in it, its modules made of the recipes."""
    project = tomllib.loads(PROJECT.search((ROOT / 'docs' / 'extending.md').read_text())[1])['project']
    imports_loss = 'from align_anything.losses.focal import focal_loss\n'
    assert imports_loss in recipe('align_anything/algorithms/focal.py')
    modules = {
        'captions/__init__.py': '',
        'captions/templates.py': recipe('my_templates.py'),
        'captions/rewards.py': REWARDS,
        'captions/mistral.py': recipe('align_anything/models/families/mistral.py'),
        'captions/focal_loss.py': recipe('align_anything/losses/focal.py'),
        'captions/focal.py': recipe('align_anything/algorithms/focal.py').replace(
            imports_loss, 'from captions.focal_loss import focal_loss\n'
        ),
    }
    folder = tmp_path_factory.mktemp('site')
    lay_package(folder, project['name'], project['version'], project['entry-points'], modules)
    return folder


def test_each_thing_of_a_plugin_is_found_by_name(site: Path, tiny: Callable[..., Path]) -> None:
    found = answer(site, PROBE, str(tiny('mistral')))
    assert found == {
        'early': [],
        'template': 'captions.templates',
        'travelled': 'captions.templates',
        'reward': 'captions.rewards',
        'algorithm': ['captions.focal', True, 'text_to_text'],
        'family': 'captions.mistral',
        'listed': [True, True, True],
    }


@pytest.mark.extended
def test_the_command_lists_templates_of_plugins(site: Path) -> None:
    """In an interpreter of its own, as a user starts it."""
    done = subprocess.run(
        [sys.executable, '-m', 'align_anything.cli', 'templates', '--json'],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(site)])},
        cwd=site,
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    listed = json.loads(done.stdout)
    [entry] = [entry for entry in listed['templates'] if entry['name'] == 'Captions']
    assert entry['meaning'] == 'Columns `file` (an image) and `caption`.'
    assert entry['options'] == {'question': 'What is in the image?'}


def test_names_that_are_taken_and_broken_plugins_say_whose_they_are(tmp_path: Path) -> None:
    points = {
        'templates': {'Alpaca': 'copycat:Alpaca'},
        'rewards': {'math': 'copycat:math'},
        'algorithms': {'sft': 'copycat:SFT'},
        'families': {'mistral': 'copycat'},
    }
    groups = {f'align_anything.{kind}': of for kind, of in points.items()}
    lay_package(tmp_path, 'copycat', '0.1', groups, {'copycat.py': 'import no_such_module_at_all\n'})
    said = answer(tmp_path, ERRORS)
    theirs = 'of copycat 0.1. Rename one, or uninstall its package.'
    assert said['template'] == (
        "DataError: template 'Alpaca' is registered twice: by align_anything.datasets.formatters.alpaca.Alpaca and by "
        f"the entry point 'Alpaca = copycat:Alpaca' {theirs}"
    )
    assert said['reward'].startswith(
        "RewardError: reward 'math' is registered twice: by align_anything.rewards.functions"
    )
    assert said['reward'].endswith(f"by the entry point 'math = copycat:math' {theirs}")
    assert said['algorithm'] == (
        "SettingsError: - algorithm 'sft' is registered twice: by align_anything.algorithms.sft.SFT and by "
        f"the entry point 'sft = copycat:SFT' {theirs}"
    )
    assert said['broken family'] == (
        "ModelError: family 'mistral': the entry point 'mistral = copycat' of copycat 0.1 cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_module_at_all'. Repair or uninstall that package."
    )
    assert 'was found' in said['family']


def test_what_is_broken_stops_only_what_asks_for_it_and_says_why(tmp_path: Path) -> None:
    algorithms = {name: f'odd:{name.capitalize()}' for name in ('good', 'nameless', 'tasked', 'scored', 'refers')}
    points = {
        'algorithms': {'zzz': 'broken:A', 'other': 'odd:Good', **algorithms},
        'templates': {'Torn': 'broken:Torn'},
        'rewards': {'torn': 'broken:torn'},
        'families': {'odd-family': 'odd_family', 'torn': 'broken', 'sized_1.5': 'odd_family'},
    }
    modules = {'odd.py': ODD, 'odd_family.py': ODD_FAMILY, 'broken.py': 'import no_such_module_at_all\n'}
    lay_package(tmp_path, 'oddly', '0.2', {f'align_anything.{kind}': of for kind, of in points.items()}, modules)
    keys = ('train_datasets', 'train_template', 'model_name_or_path', 'output_dir')
    needed = [word for key in keys for word in (f'--{key}', 'x')]
    done = python(BESIDE, *needed, folder=tmp_path, path=[tmp_path])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told['imported'] == [] and told['help'] == [0, True]
    assert "there is no key 'no_such_key'" in told['unknown']
    refused = {'zzz', 'nameless', 'other', 'tasked', 'scored'}
    assert {'good', 'sft'} <= set(told['known']) and not refused & set(told['known'])
    assert {'good', 'sft'} <= set(told['runs']) and not refused & set(told['runs'])
    assert 'Alpaca' in told['templates'] and 'Torn' not in told['templates'] and 'RLAIFV' in told['with']
    assert 'llava' in told['families'] and not {'odd_family', 'torn'} & set(told['families'])
    for name in (*refused, 'torn', 'Torn', 'odd-family'):
        assert done.stderr.count(f"the entry point '{name} = ") == 1, done.stderr
    assert 'WARNING A plugin is left out:' in done.stderr and 'of oddly 0.2 cannot be ' in done.stderr
    assert 'was found' in told['said'].pop('good') and told['checked']['good'] == 'None was found'
    why = {name: line.split(' of oddly 0.2 cannot be ')[1] for name, line in told['said'].items()}
    assert why.pop('zzz') == (
        "imported: ModuleNotFoundError: No module named 'no_such_module_at_all'. Repair or uninstall that package."
    )
    assert why == {
        name: f'used: its {problem}. Correct or uninstall that package.'
        for name, problem in {
            'nameless': "`name` is None, but should be 'nameless'",
            'other': "`name` is 'good', but should be 'other'",
            'tasked': f"`task` is 'guessing', but should be {' or '.join(map(repr, TASKS))}",
            'scored': "`scores` is 'letters', but should be 'tokens' or 'responses' or 'units'",
        }.items()
    }
    assert told['checked']['refers'] == (
        '- algorithm refers: odd.Refers refers, so it must derive from align_anything.algorithms.referring.Referring.'
    )
    assert "'Torn = broken:Torn' of oddly 0.2 cannot be imported" in told['template']
    assert told['family'] == (
        "family 'odd-family': the entry point 'odd-family = odd_family' of oddly 0.2 cannot be used: its SPEC is "
        "'FamilySpec', but should be a class derived from FamilySpec. Correct or uninstall that package."
    )
    assert told['dotted'] == 'None was found'


def test_every_task_that_an_algorithm_may_have_is_made() -> None:
    assert set(TASKS) == set(data.TASKS)


def test_two_families_of_one_file_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {'my-fam': 'twins', 'my_fam': 'twins'}
    lay_package(tmp_path, 'twins', '0.1', {'align_anything.families': points}, {'twins.py': ''})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(families, '_PLUGINS', Plugins('family', 'align_anything.families', ModelError))
    with pytest.raises(ModelError) as caught:
        families.family_module('my_fam')
    assert str(caught.value) == (
        "family 'my_fam' is registered twice: by the entry point 'my-fam = twins' of twins 0.1 and by "
        "the entry point 'my_fam = twins' of twins 0.1. Rename one, or uninstall its package."
    )


def test_a_family_that_has_a_file_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_package(tmp_path, 'copycat', '0.1', {'align_anything.families': {'qwen2-vl': 'copycat'}}, {'copycat.py': ''})
    monkeypatch.syspath_prepend(tmp_path)
    # One that has not looked yet.
    monkeypatch.setattr(families, '_PLUGINS', Plugins('family', 'align_anything.families', ModelError))
    for ask in (families.family_names, lambda: families.family_module('llava'), lambda: families.family_module('opt')):
        with pytest.raises(ModelError) as caught:
            ask()
        assert str(caught.value) == (
            "family 'qwen2-vl' is registered twice: by align_anything.models.families.qwen2_vl and by "
            "the entry point 'qwen2-vl = copycat' of copycat 0.1. Rename one, or uninstall its package."
        )
