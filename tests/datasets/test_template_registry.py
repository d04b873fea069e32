"""Templates by name and from a user's file, also in another process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from align_anything.core.errors import DataError
from align_anything.datasets import BaseFormatter, get_template, make_formatter, register_template
from align_anything.datasets.template_registry import template_names, templates_with

OWN = """
from align_anything.datasets import BaseFormatter, register_template

print('executed')

@register_template('{name}')
class Own(BaseFormatter):
    question: str = 'q'

    def format_supervised_sample(self, raw_sample):
        turns = [{{'role': 'user', 'content': raw_sample[self.question]}}, {{'role': 'assistant', 'content': 'yes'}}]
        return turns, {{}}


class Unregistered(Own):
    def __init__(self, **options):
        self.seen = options
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / 'own.py'
    path.write_text(OWN.format(name=f'Own-{tmp_path.name}'))
    return path


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match="unknown template 'alpacca'. Did you mean 'Alpaca'"):
        get_template('alpacca')


def test_duplicates_are_refused() -> None:
    with pytest.raises(DataError, match="template 'Alpaca' is registered twice"):

        @register_template('Alpaca')
        class Other(BaseFormatter):
            pass


def test_only_formatters_can_be_registered() -> None:
    with pytest.raises(DataError, match='Plain must derive from BaseFormatter'):

        @register_template('Plain')
        class Plain:
            pass


def test_a_missing_hook_names_the_templates_that_have_it() -> None:
    with pytest.raises(DataError) as caught:
        make_formatter('Alpaca').format_preference_sample({})
    text = str(caught.value)
    assert text.startswith("template 'Alpaca' has no format_preference_sample. Templates that have it: AA_T2A, ")
    assert text.endswith('.') and 'PKUSafeRLHF' in text and 'GSM8K' not in text


def test_a_template_without_hooks_lacks_them_all() -> None:
    bare = BaseFormatter()
    assert bare.hooks() == frozenset()
    for call in (bare.format_supervised_sample, bare.format_prompt_only_sample, bare.check_equal):
        with pytest.raises(DataError, match='has no format_'):
            call({})
    with pytest.raises(DataError, match='has no format_unmatched_supervised_sample'):
        bare.format_unmatched_supervised_sample({}, {})
    assert bare.check_validation({})


def test_templates_with() -> None:
    assert 'RLAIFV' in templates_with('check_equal')
    assert set(templates_with('format_unmatched_supervised_sample')) <= set(template_names())


def test_own_file_by_registered_and_by_class_name(own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registered = get_template(f'{own_file}:Own-{own_file.parent.name}')
    assert registered is get_template(f'{own_file}:Own')
    assert capsys.readouterr().out == 'executed\n'
    row = {'text': 'Hi?'}
    formatter = make_formatter(f'{own_file}:Own', {'question': 'text'})
    assert formatter.format_supervised_sample(row)[0][0]['content'] == 'Hi?'
    assert formatter.format_prompt_only_sample(row)[1] == {'ground_truth': 'yes'}


@pytest.mark.parametrize('name', ['Own', 'Unregistered'])
def test_own_formatter_survives_pickling_into_a_fresh_process(own_file: Path, tmp_path: Path, name: str) -> None:
    formatter = make_formatter(f'{own_file}:{name}', {'question': 'text'})
    (tmp_path / 'formatter.pickle').write_bytes(pickle.dumps(formatter))
    code = (
        'import pickle, sys; formatter = pickle.load(open(sys.argv[1], "rb"));'
        'print(type(formatter).__name__, formatter.name, formatter._given)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path / 'formatter.pickle')], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{name} {own_file}:{name} {{'question': 'text'}}"


@pytest.mark.parametrize('name', ['Alpaca', 'Messages'])
def test_built_in_formatters_pickle(name: str) -> None:
    formatter = make_formatter(name, {'system_prompt': 'Hi'})
    copy = pickle.loads(pickle.dumps(formatter))
    assert type(copy) is type(formatter) and copy.system_prompt == 'Hi'
    by_hand = pickle.loads(pickle.dumps(get_template(name)(system_prompt='Hi')))
    assert by_hand.system_prompt == 'Hi'


def test_own_file_errors(tmp_path: Path, own_file: Path) -> None:
    (tmp_path / 'broken.py').write_text('import no_such_module_at_all')
    for name, message in [
        (f'{tmp_path}/missing.py:Own', 'there is no file'),
        (
            f'{tmp_path}/broken.py:Own',
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_at_all'",
        ),
        (f'{own_file}:Owm', "no template 'Owm'. Did you mean 'Own'?"),
        (f'{own_file}:BaseFormatter', 'Templates there: Own, '),
        (str(own_file), 'write .*own.py:Name'),
    ]:
        with pytest.raises(DataError, match=message):
            get_template(name)


def test_a_constructor_that_takes_no_options_is_reported(tmp_path: Path) -> None:
    (tmp_path / 'fixed.py').write_text(
        'from align_anything.datasets import BaseFormatter\n'
        'class Fixed(BaseFormatter):\n'
        '    def __init__(self):\n'
        '        super().__init__()\n'
    )
    assert make_formatter(f'{tmp_path}/fixed.py:Fixed').name.endswith('fixed.py:Fixed')
    with pytest.raises(DataError, match=r"does not take the options \['a'\]"):
        make_formatter(f'{tmp_path}/fixed.py:Fixed', {'a': 1})


def test_formatters_import_nothing_heavy() -> None:
    code = (
        'import sys; from align_anything.datasets.template_registry import template_names; template_names();'
        'print([name for name in ("transformers", "deepspeed", "datasets", "PIL", "pydantic") if name in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
