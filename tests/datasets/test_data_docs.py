"""docs/data.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.template_registry import get_template, make_formatter, template_names

TEXT = (Path(__file__).parents[2] / 'docs' / 'data.md').read_text()
HOOKS = {
    's': 'format_supervised_sample',
    'p': 'format_preference_sample',
    'o': 'format_prompt_only_sample',
    'u': 'format_unmatched_supervised_sample',
}
TABLE = re.findall(r'^\| `([^`]+)` \| .+ \| ((?:[spou] ?)+) \|$', TEXT, re.MULTILINE)


def test_the_table_lists_every_template_once() -> None:
    # Own files of other tests may be registered too; their names hold a file's.
    built_in = [
        name for name in template_names() if get_template(name).__module__.startswith('align_anything.datasets')
    ]
    assert sorted(name for name, _ in TABLE) == sorted(built_in)


@pytest.mark.parametrize(('name', 'letters'), TABLE)
def test_the_table_gives_the_hooks_of_each_template(name: str, letters: str) -> None:
    assert {HOOKS[letter] for letter in letters.split()} == get_template(name).hooks() - {'check_equal'}


def test_the_formatter_in_the_text_works(tmp_path: Path) -> None:
    (code,) = re.findall(r'```python\n(.+?)```', TEXT, re.DOTALL)
    (tmp_path / 'flowers.py').write_text(code)
    formatter = make_formatter(f'{tmp_path}/flowers.py:Flowers', {'language': 'Latin'})
    conversation, _ = BoundTemplate(formatter).format_supervised_sample({'photo': 'a.png', 'flower': 'rosa'})
    image, question = conversation[0]['content']
    assert image['image'].source == 'a.png'
    assert question['text'] == 'Which flower is this? Answer in Latin.'
    assert conversation[1]['content'] == [{'type': 'text', 'text': 'rosa'}]


def test_options_in_the_tables_exist() -> None:
    for section, heading in re.findall(r'(### (`\w+`(?:, `\w+`)*):.+?)(?=\n##)', TEXT, re.DOTALL):
        known = {key for name in re.findall(r'\w+', heading) for key in get_template(name).option_defaults()}
        cells = re.findall(r'^\| (`.+?`) \|', section, re.MULTILINE)
        options = [option for cell in cells for option in re.findall(r'`(\w+)`', cell)]
        assert options and set(options) <= known | {*template_names()}
