"""Every modality pair has a run for every algorithm: the grid has no holes."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from align_anything import algorithms, trainers
from align_anything.algorithms.base import known_algorithms
from align_anything.cli.leaves import runs
from align_anything.configs.resolve import Resolved
from align_anything.configs.yaml_text import parse_lines
from align_anything.core.errors import SettingsError
from align_anything.core.types import MEDIA_KINDS
from align_anything.trainers import launch
from align_anything.trainers.pairs import PAIRS

CONFIGS = Path(algorithms.__file__).parents[1] / 'configs' / 'train'
DENOISES = {'nft'}
"""What learns from noised media alone, and is for pairs whose answers are one medium in a file."""
GRID = [
    (pair, name)
    for pair in PAIRS
    for name in sorted(known_algorithms())
    if not (name in DENOISES and (PAIRS[pair].writes_text or PAIRS[pair].writes == {'action'}))
]
SHARED = {'loops', 'runs'}


def settings(pair: str, name: str, *more: str) -> Resolved:
    """The settings of a run that is given the keys without which none starts, and `more`."""
    needed = ['--model_name_or_path', 'm', '--train_datasets', 'd', '--train_template', 't', '--output_dir', 'o']
    return launch.settings_of(PAIRS[pair], known_algorithms()[name], [*needed, *more], {})


def test_the_table_has_the_pairs_that_have_leaves() -> None:
    packages = {module.name for module in pkgutil.iter_modules(trainers.__path__) if module.ispkg}
    assert packages - SHARED == set(PAIRS) == set(runs())
    assert [pair.name for pair in PAIRS.values()] == list(PAIRS)


@pytest.mark.parametrize(('pair', 'name'), GRID)
def test_a_pair_has_the_algorithm(pair: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name in runs()[pair], f'no trainers/{pair}/{name}.py'
    leaf = importlib.import_module(f'align_anything.trainers.{pair}.{name}')
    started = []
    monkeypatch.setattr(launch, 'launch', lambda *given: started.append(given))
    leaf.main()
    leaf.main(['--help'])
    run = PAIRS[pair], known_algorithms()[name]
    assert started == [(*run, None), (*run, ['--help'])]


@pytest.mark.parametrize(
    ('pair', 'name', 'words'),
    [
        ('text_image_to_txt', 'sft', "no modality pair 'text_image_to_txt'. Did you mean 'text_image_to_text'"),
        ('text_to_text', 'grop', "no algorithm 'grop'. Did you mean 'grpo'"),
    ],
)
def test_a_leaf_of_something_unknown_is_refused(pair: str, name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        launch.leaf(pair, name)


@pytest.mark.parametrize(('pair', 'name'), GRID)
def test_its_settings_resolve_and_say_what_they_are(pair: str, name: str) -> None:
    algorithm = known_algorithms()[name]
    # What trains nothing has nothing to track, and gets no settings that it would refuse.
    assert settings(pair, name).cfgs.logger_cfgs.log_run_name == (name if algorithm.trains else None)
    assert (CONFIGS / f'{name}.yaml').exists()


@pytest.mark.parametrize(('pair', 'name'), GRID)
def test_the_defaults_of_the_pair_lie_between_the_files(pair: str, name: str) -> None:
    """Over the algorithm's file, under the pair's own, which repeats none of them; where nothing is trained, absent."""
    resolved, file = settings(pair, name), CONFIGS / pair / f'{name}.yaml'
    lines = parse_lines(file.read_text()) if file.exists() else []
    own = {parts[-1]: value for parts, value, _ in lines}
    for key, value in PAIRS[pair].defaults.items():
        assert own.get(key) != value, f'{file} repeats what the table of pairs says of {key}'
        held, origin = getattr(resolved.cfgs.train_cfgs, key), resolved.origins[f'train_cfgs.{key}']
        if not known_algorithms()[name].trains:
            assert origin == 'default'
        elif key in own:
            assert held == own[key] and origin.startswith(f'configs/train/{pair}/{name}.yaml')
        else:
            assert (held, origin) == (value, f'pair {pair}')
            assert not resolved.given(f'train_cfgs.{key}')
            given = settings(pair, name, f'--{key}', str(not value))
            assert getattr(given.cfgs.train_cfgs, key) is not value and given.given(f'train_cfgs.{key}')


@pytest.mark.parametrize('pair', PAIRS)
def test_a_template_is_required_where_answers_are_texts(pair: str) -> None:
    argv = ['--model_name_or_path', 'm', '--train_datasets', 'd', '--output_dir', 'o']
    given = (PAIRS[pair], known_algorithms()['sft'], argv, {})
    if PAIRS[pair].writes:
        assert launch.settings_of(*given).cfgs.data_cfgs.train_template is None
    else:
        with pytest.raises(SettingsError, match='train_template.*is required'):
            launch.settings_of(*given)


@pytest.mark.parametrize('pair', PAIRS)
@pytest.mark.parametrize('kind', MEDIA_KINDS)
def test_media_have_a_folder_where_the_pair_reads_or_writes_them(pair: str, kind: str, tmp_path: Path) -> None:
    given = (pair, 'sft', f'--{kind}_folder', str(tmp_path))
    if kind in PAIRS[pair].reads | PAIRS[pair].writes:
        assert getattr(settings(*given).cfgs.data_cfgs, f'{kind}_folder') == str(tmp_path)
    else:
        with pytest.raises(SettingsError, match=f'without {kind}'):
            settings(*given)
