"""The tables of keys for those who come from elsewhere: each name stands for the key beside it, or leads to it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align_anything.algorithms.base import known_algorithms
from align_anything.configs.incumbent import LEFT_OUT, ONLY, REFUSED, RENAMED, RENAMED_DENOISING
from align_anything.configs.keys import KeyIndex, UnknownKey
from align_anything.configs.schema import build_run_schema, groups_of

ROOT = Path(__file__).resolve().parents[2]
KNOWN = known_algorithms()
INDICES = [KeyIndex(build_run_schema(kind), f'text_to_text {name}', KNOWN) for name, kind in KNOWN.items()]
PAGES = ('trl', 'llama_factory', 'align_anything')


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page, each a list of rows of cells, the head first."""
    text = (ROOT / 'docs' / f'{page}.md').read_text()
    blocks = re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip('|').split('|')] for line in block.splitlines()] for block in blocks]


def names(cell: str) -> list[str]:
    return re.findall('`([a-z_0-9]+)`', cell)


ROWS = [
    pytest.param(name, key, rest, id=f'{page}-{name}')
    for page in PAGES
    for head, _, *rows in tables(page)
    if 'here' in head
    for theirs, ours, rest in rows
    for name, key in zip(names(theirs), names(ours) * 2, strict=False)
]


def meaning(name: str) -> tuple[set[str], str]:
    """What the name means in the runs that have it, and what is said of it in the others."""
    keys, said = set(), []
    for index in INDICES:
        try:
            keys.add(index.locate(name).key)
        except UnknownKey as problem:
            said.append(str(problem))
    return keys, '\n'.join(said)


@pytest.mark.parametrize(('name', 'key', 'rest'), ROWS)
def test_a_name_is_the_key_or_leads_to_it(name: str, key: str, rest: str) -> None:
    keys, said = meaning(name)
    if rest.startswith('also here'):
        # GRPO has a beta of its own.
        assert keys - {'beta'} == {key}
    else:
        assert key in keys or f"Did you mean '{key}'" in said
        assert not rest.startswith('also')


def test_the_tables_are_read() -> None:
    assert len(ROWS) > 80


@pytest.mark.parametrize('page', PAGES)
def test_other_names_on_a_page_are_keys(page: str) -> None:
    keys = {key for kind in KNOWN.values() for group in groups_of(build_run_schema(kind)).values()
            for key in group.model_fields}  # fmt: skip
    text = (ROOT / 'docs' / f'{page}.md').read_text()
    same = re.findall(r'\n\n(`[^|]*?have the same names)', text)
    assert {name for sentence in same for name in names(sentence)} <= keys
    assert page == 'align_anything' or same
    for given in re.findall(r'--([a-z_]+)', text):
        assert given in ('module', 'config') or meaning(given)[0] or given in keys, given
    for target in re.findall(r'\]\(([^)#]+)\)', text):
        assert (ROOT / 'docs' / target).exists(), target


def test_what_becomes_of_keys_in_files_is_what_happens() -> None:
    [table] = [table for table in tables('align_anything') if table[0][0] == 'in files']
    for theirs, becomes in table[2:]:
        for name in names(theirs)[:1] if ' with' in theirs else names(theirs):
            if becomes.startswith('read as'):
                assert (RENAMED | RENAMED_DENOISING)[name].partition('.')[2] == names(becomes)[0]
            elif becomes.startswith('refused'):
                assert name in REFUSED or name in ONLY
            else:
                assert name in LEFT_OUT or name == 'lr_warmup_ratio'
