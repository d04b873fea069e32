"""What the page may name lies inside of its folder, however it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.core.errors import SettingsError
from align_anything.serve.ui.choices import look_around, modules_of_pairs
from align_anything.serve.ui.paths import Root
from align_anything.trainers.leaves import runs


@pytest.fixture
def root(tmp_path: Path) -> Root:
    inside, outside = tmp_path / 'inside', tmp_path / 'outside'
    (inside / 'data').mkdir(parents=True)
    outside.mkdir()
    (outside / 'secret.py').touch()
    (inside / 'way_out').symlink_to(outside)
    (inside / 'short').symlink_to(inside / 'data')
    return Root(inside)


@pytest.mark.parametrize(
    'text',
    [
        *('data/rows.jsonl', 'Qwen/Qwen2.5-0.5B', 'null', '', 'short/new', 'data/../data/x', 'https://example.org/x'),
        *('a text with blanks', '{{ messages }}', 'templates/own.py:Mine', 'x' * 5000, 'hf://datasets/x'),
    ],
)
def test_what_lies_inside_or_is_no_path_is_let_through(text: str, root: Root) -> None:
    assert root.problem_with(text) == ''


@pytest.mark.parametrize(
    'text',
    [
        *('/etc/passwd', '../outside', 'data/../../outside/x', 'way_out', 'way_out/new/run', '~/x', '~nobody/x'),
        *('way_out/secret.py:Mine', '../own.py:Mine', 'file:///etc/passwd', 'FILE:///etc', 'local:///etc'),
        *('zip://a.json::/etc/x.zip', 'zip://*.json::file:///x.zip', '/a\nb', 'a\0b', '../*.json', './../x'),
    ],
)
def test_what_leads_out_is_refused(text: str, root: Root) -> None:
    assert root.problem_with(text)
    assert root.problems({'data_cfgs.train_datasets': ['data/a', {'x': [text]}], 'train_cfgs.seed': 3})
    with pytest.raises(SettingsError, match='run: '):
        root.inside(text, 'run')


def test_absolute_paths_inside_are_let_through(root: Root) -> None:
    assert root.problem_with(str(root.folder / 'data')) == ''
    assert root.inside(root.folder / 'short' / 'x', 'run') == root.folder / 'data' / 'x'
    assert root.short(root.inside('short/x', 'run')) == 'data/x'
    with pytest.raises(SettingsError, match='no folder'):
        Root(root.folder / 'nowhere')


def test_what_lies_in_a_folder(tmp_path: Path) -> None:
    for name in (
        *('models/tiny/config.json', 'models/tiny/vocab.json', 'pipe/model_index.json', 'pipe/unet/config.json'),
        *('data/rows.jsonl', 'data/more.csv.gz', 'data/notes.txt', 'saved/dataset_info.json', 'saved/state.json'),
        *('pictures/metadata.jsonl', 'pictures/a.png', 'own.yaml', '.hidden/x.jsonl', '.git/config.json'),
        *('output/one/metrics.jsonl', 'output/one/settings.yaml', 'output/one/slice_end/config.json'),
        *('output/one/slice_3/adapter_config.json', 'output/two/launch.json', 'output/two/inspect.json'),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / 'round').symlink_to(tmp_path)
    found = look_around(tmp_path)
    assert sorted(found.checkpoints) == [
        *('models/tiny', 'output/one', 'output/one/slice_3', 'output/one/slice_end', 'pipe'),
    ]
    assert sorted(found.data) == ['data/more.csv.gz', 'data/rows.jsonl', 'pictures', 'saved']
    assert found.settings == ['own.yaml'] and sorted(found.runs) == ['output/one', 'output/two']


def test_the_names_of_runs_are_known_without_importing_them() -> None:
    known = runs()
    assert {pair: {*names} for pair, names in modules_of_pairs().items()} == {
        pair: {*names} - {'generate', 'rm_score'} for pair, names in known.items()
    }
