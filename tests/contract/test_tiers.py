"""`make test` is short and still holds each invariant, for each family and algorithm that one is about."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from align_anything.cli.leaves import runs
from tests.harness.pairwise import in_tiers
from tests.harness.shares import SHARES, is_left_out
from tests.harness.tiers import COUNTS, LONG, TOGETHER, count_tiers, first_tier, group_of
from tests.invariants import families, test_frozen, test_gradients, test_scores, test_zero
from tests.learning import test_audio, test_images, test_online, test_preferences, test_text, test_videos
from tests.scripts import test_shell_scripts

ROOT = Path(__file__).resolve().parents[2]
# Files whose tests are all left to `make extended`, and what shows something of the kind in `make test`.
ONLY_EXTENDED = {
    'tests/invariants/test_eight_bits.py': 'first steps of 8-bit AdamW in tests/engines/test_optim.py',
    'tests/invariants/test_compiling.py': 'what falls back in tests/models/test_compiling.py',
    'tests/invariants/test_tiling.py': 'gradients of tiles in tests/models/test_tiling.py',
    'tests/learning/test_acting.py': 'the lesson of PPO, and runs in tests/trainers/test_environments.py',
    'tests/learning/test_drawn.py': 'tests/contract/test_emitting_docs.py, whose commands teach a model to draw',
    'tests/learning/test_open_prompts.py': 'the demo of painting, and runs of families of sounds in tests/trainers',
    'tests/learning/test_painted.py': 'what policies learn in tests/policies/denoising/test_learning.py, and the demo',
    'tests/learning/test_painted_online.py': 'rewards that are learned in tests/policies/denoising/test_learning.py',
    'tests/learning/test_composed.py': 'lessons of images and of audio, and tests/trainers/test_composed_runs.py',
    'tests/learning/test_edited.py': 'runs of pipelines that edit in tests/trainers/test_editing_runs.py',
    'tests/learning/test_looking.py': 'tests/environments/test_zoom.py, and turns with pictures in tests/trainers',
    'tests/learning/test_omni.py': 'a lesson for each kind of media alone',
    'tests/learning/test_online_vllm.py': 'the lesson of PPO without vLLM, and what vLLM samples in tests/rollouts',
    'tests/learning/test_placed.py': 'tests/contract/test_emitting_docs.py, and what families score in tests/trainers',
    'tests/learning/test_spoken.py': 'tests/contract/test_emitting_docs.py, and runs in tests/trainers/test_csm.py',
    'tests/trainers/test_acting_tokens.py': 'runs in tests/trainers/test_acting.py, kills in test_action_runs.py',
    'tests/trainers/test_denoising_ppo.py': 'PPO among the algorithms of tests/trainers/test_denoising_runs.py',
    'tests/learning/test_reached.py': 'what a policy of chunks learns in tests/policies, and runs in test_flow_runs.py',
    'tests/learning/test_robots.py': 'the lessons of environments, and runs in tests/trainers/test_action_runs.py',
    'tests/learning/test_turning.py': 'runs in tests/trainers/test_acting.py',
    'tests/rollouts/test_vllm_episodes.py': 'episodes of transformers in tests/rollouts/test_episodes.py',
    'tests/trainers/test_environments_vllm.py': 'runs of transformers in tests/trainers/test_environments.py',
    'tests/trainers/test_planning_denoisers.py': 'plans of token models in tests/trainers/test_planning.py',
    'tests/trainers/test_staging.py': 'what is written and told in tests/engines/test_staging.py, and test_resume.py',
    'tests/trainers/test_lost_ranks.py': 'ranks that are killed or raise in tests/engines/test_watch.py',
    'tests/trainers/test_launcher.py': 'the demo, under the same launcher on one rank',
}


def test_a_file_with_extended_tests_has_others_too(request: pytest.FixtureRequest) -> None:
    """Of the files that this run has collected; `make test` collects all."""
    counts = request.config.stash[COUNTS]
    assert counts[Path(__file__).relative_to(ROOT).as_posix()][0] > 0
    assert only_extended(counts) <= set(ONLY_EXTENDED)
    for name in ONLY_EXTENDED:
        assert (ROOT / name).exists() and counts.get(name, [0, 1])[0] == 0, f'{name} need not be listed'


def only_extended(counts: dict[str, list[int]]) -> set[str]:
    return {name for name, (first, extended) in counts.items() if extended and not first}


def test_a_file_without_any_would_be_found() -> None:
    assert only_extended({'tests/a.py': [1, 2], 'tests/b.py': [0, 2], 'tests/c.py': [3, 0]}) == {'tests/b.py'}


def test_tests_are_counted_by_what_they_are_marked(request: pytest.FixtureRequest) -> None:
    counts = count_tiers(request.session.items)
    assert counts[Path(__file__).relative_to(ROOT).as_posix()] == [
        sum(item.path == Path(__file__) for item in request.session.items),
        0,
    ]


def test_scores_are_compared_for_every_family_in_every_layout() -> None:
    assert first_tier(test_scores.test_scores_are_the_plain_models_for_any_neighbours) == families.FAMILY_LAYOUTS


@pytest.mark.parametrize(
    'test',
    [
        test_scores.test_no_score_depends_on_a_later_token_or_a_neighbour,
        test_gradients.test_gradients_are_those_of_a_plain_loop_for_every_cut,
    ],
    ids=lambda test: test.__name__,
)
def test_every_family_is_in_the_first_tier(test) -> None:
    assert {family for family, *_ in first_tier(test)} == {*families.FAMILIES}


def test_every_family_with_media_has_a_frozen_component_and_every_component_is_frozen_in_one() -> None:
    found = first_tier(test_frozen.test_a_frozen_component_keeps_its_bits_and_the_others_move)
    assert {family for family, _ in found} == {*families.MULTIMODAL, *families.CODED}
    assert {component for _, component in found} == {*test_frozen.COMPONENTS, 'audio_tower', 'generation'}


def test_gradients_are_compared_in_every_layout() -> None:
    found = first_tier(test_gradients.test_gradients_are_those_of_a_plain_loop_for_every_cut)
    assert {layout for _, layout in found} == {*families.LAYOUTS}


def test_every_two_of_ranks_stages_layouts_and_frozen_components_meet() -> None:
    found = first_tier(test_zero.test_every_stage_cut_and_layout_train_as_one_loop)
    assert len(found) < len(test_zero.CUTS) / 3
    assert {(ranks, stage) for _, ranks, stage, _, _ in found} == {*product((1, 2), (0, 2, 3))}
    assert {(layout, ranks) for _, ranks, _, layout, _ in found} == {*product(families.LAYOUTS, (1, 2))}
    assert {(layout, stage) for _, _, stage, layout, _ in found} == {*product(families.LAYOUTS, (0, 2, 3))}
    assert {(family, layout) for family, _, _, layout, _ in found} == {
        *product(('llava', 'qwen2_5_vl'), families.LAYOUTS)
    }
    assert {stage for _, _, stage, _, frozen in found if frozen} == {0, 2, 3}


def test_six_lessons_stay() -> None:
    assert [
        first_tier(test)
        for test in (
            test_text.test_a_family_learns_to_count_in_phrasings_it_never_saw,
            test_images.test_a_family_learns_to_see_one_image,
            test_videos.test_a_family_learns_the_order_of_frames,
            test_audio.test_a_family_learns_to_hear,
            test_preferences.test_a_model_learns_what_is_preferred,
            test_online.test_rewards_alone_teach_what_is_right,
        )
    ] == [
        [('llama',)],
        [('qwen2_vl',)],
        [('qwen2_5_vl',)],
        [('qwen2_audio',)],
        [('text_to_text', 'dpo')],
        [('text_to_text', 'ppo')],
    ]


def test_a_script_of_every_pair_trains_and_no_script_is_left_out() -> None:
    trained = [path for (path,) in first_tier(test_shell_scripts.test_it_trains)]
    texts = [path.read_text() for path in trained]
    for pair in runs():
        assert any(f'align_anything.trainers.{pair}.' in text for text in texts), pair
    dry = first_tier(test_shell_scripts.test_a_dry_run_gets_to_its_end)
    assert dry and not {*trained} & {path for (path,) in dry}
    assert [path for (path,) in first_tier(test_shell_scripts.test_it_names_what_exists)] == test_shell_scripts.SCRIPTS


def test_extended_parameters_are_told_from_others() -> None:
    @pytest.mark.parametrize(('one', 'two'), in_tiers(product('ab', 'xy'), [('a', 'x'), ('b', 'y')]))
    def mixed() -> None: ...

    @pytest.mark.parametrize('one', ['a', pytest.param('b', marks=pytest.mark.extended)])
    def single() -> None: ...

    @pytest.mark.extended
    @pytest.mark.parametrize('one', ['a'])
    def left_out() -> None: ...

    assert first_tier(mixed) == [('a', 'x'), ('b', 'y')]
    assert first_tier(single) == [('a',)] and first_tier(left_out) == []


@pytest.mark.parametrize('file', SHARES)
def test_what_has_a_share_exists_and_leaves_some_to_the_first_tier(file: str, request: pytest.FixtureRequest) -> None:
    module = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
    assert {*SHARES[file]} <= {*vars(module)}
    assert 1 not in SHARES[file].values()
    for name, share in SHARES[file].items():
        cells = [
            item for item in request.session.items if item.nodeid.startswith((f'{file}::{name}[', f'{file}::{name}'))
        ]
        if share and cells:
            assert any(not is_left_out(item) for item in cells), name


def test_a_share_is_spread_over_the_cells() -> None:
    def item(name: str, *indices: int) -> SimpleNamespace:
        return SimpleNamespace(
            nodeid=f'tests/models/test_export.py::{name}[x]',
            callspec=SimpleNamespace(indices=dict(zip('abc', indices, strict=False))),
        )

    file = SHARES['tests/models/test_export.py']
    assert file == {
        'test_merged_export_computes_what_the_live_adapter_computes': 3,
        'test_zero3_exports_the_names_of_the_source': 4,
    }
    first, second = file
    thirds = [is_left_out(item(first, number, number)) for number in range(6)]
    assert thirds == [False, True, True] * 2
    assert is_left_out(item(second, 0)) and not is_left_out(item('test_that_is_not_named', 0))


def test_a_share_is_no_first_tier_of_every_family() -> None:
    with pytest.raises(ValueError, match='a share of its cells'):
        first_tier(test_gradients.test_recomputing_activations_changes_no_gradient)


@pytest.mark.parametrize(
    ('name', 'group'),
    [
        ('tests/trainers/test_vllm.py::test_a', 'vllm'),
        ('tests/learning/test_online_vllm.py::test_a[text_to_text-dpo]', 'vllm'),
        ('tests/learning/test_online.py::test_a[text_to_text-dpo]', 'text_to_text'),
        ('tests/invariants/test_zero.py::test_a[llava-3]', 'llava'),
        ('tests/invariants/test_zero.py::test_a', 'tests/invariants/test_zero.py::test_a'),
        ('tests/trainers/test_resume.py::test_a[z2]', 'resume'),
        ('tests/losses/test_sft.py::test_a[x-1]', 'tests/losses/test_sft.py::test_a[x-1]'),
    ],
)
def test_what_shares_something_costly_stays_on_one_worker(name: str, group: str) -> None:
    assert group_of(name) == group


def test_a_group_is_one_workers_and_others_spread(tmp_path: Path) -> None:
    """By a run of xdist itself, whose own groups depend on how pytest keeps names."""
    (tmp_path / 'conftest.py').write_text(
        'from tests.harness import tiers\n'
        "tiers.TOGETHER['test_apart.py'] = tiers.FIRST_PARAMETER\n"
        'def pytest_xdist_make_scheduler(config, log):\n'
        '    return tiers.Together(config, log)\n'
    )
    (tmp_path / 'test_apart.py').write_text(
        'import time, pytest\n'
        "@pytest.mark.parametrize('which', 'ab')\n"
        "@pytest.mark.parametrize('family', ['one', 'two', 'three', 'four'])\n"
        'def test_it(family, which):\n'
        '    time.sleep(0.2)\n'
    )
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-v', '-n', '2', '--dist', 'loadgroup', '-p', 'no:cacheprovider', tmp_path],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    workers: dict[str, set[str]] = {}
    for worker, family in re.findall(r'\[(gw\d)\].*test_it\[(\w+)-', done.stdout):
        workers.setdefault(family, set()).add(worker)
    assert len(workers) == 4 and all(len(found) == 1 for found in workers.values())
    assert set().union(*workers.values()) == {'gw0', 'gw1'}


def test_the_suite_is_handed_out_so(request: pytest.FixtureRequest) -> None:
    hooks = request.config.pluginmanager.hook.pytest_xdist_make_scheduler.get_hookimpls()
    assert str(ROOT / 'tests' / 'conftest.py') in [hook.plugin_name for hook in hooks]


@pytest.mark.parametrize('name', [*LONG, *TOGETHER])
def test_what_is_named_exists(name: str) -> None:
    assert [*ROOT.glob(f'{name}*')] or (ROOT / name).is_dir(), name
