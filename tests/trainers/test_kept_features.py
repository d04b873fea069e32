"""Runs that keep the features of frozen towers: the second epoch runs no tower, and the losses are the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from tests.harness.pairwise import in_tiers
from tests.trainers.runs import IMAGE, lines, run, sft, succeed, text_rows, weights, write_rows

PICTURES, TEXTS = 5, 3


@pytest.fixture(scope='module')
def rows(tmp_path_factory) -> Path:
    """Rows with an image each and rows without."""
    folder = tmp_path_factory.mktemp('inputs')
    for number in range(PICTURES):
        Image.new('RGB', (40 + 8 * number, 60), (50 * number, 80, 90)).save(folder / f'{number}.png')
    seen = [{**row, 'image': f'{number}.png'} for number, row in enumerate(text_rows(PICTURES))]
    return write_rows(folder / 'rows.jsonl', seen + text_rows(TEXTS, seed=1))


@pytest.fixture(scope='module')
def plain(tiny, rows: Path, tmp_path_factory) -> Callable[[str], Path]:
    """`plain('llava')` is the folder of a run of two epochs that keeps nothing."""

    @cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp('plain') / 'run'
        succeed(sft(folder, tiny(family), rows, epochs=2), pair=IMAGE)
        return folder

    return make


def zero(folder: Path, stage: int) -> Path:
    """A ZeRO file that partitions even tiny parameters."""
    path = folder / f'zero{stage}.json'
    path.write_text(json.dumps({'zero_optimization': {'stage': stage, 'stage3_param_persistence_threshold': 0}}))
    return path


def count(folder: Path) -> Callable[[int], None]:
    """Notes how many items each rank was missing whenever one of its towers ran, and when epochs end."""
    folder.mkdir()

    def before(rank: int) -> None:
        from align_anything.models.feature_cache import CachedTower
        from align_anything.trainers.loops.offline import OfflineLoop

        features, encode, end = CachedTower._features, CachedTower._encode, OfflineLoop._end_epoch

        def note(word: object) -> None:
            with open(folder / f'{rank}.jsonl', 'a') as file:
                file.write(f'{json.dumps(word)}\n')

        def watched(tower, *given):
            runs = []
            tower._encode = lambda *more: runs.append(1) or encode(tower, *more)
            known = tower.encoded
            result = features(tower, *given)
            if runs:
                note(tower.encoded - known)
            return result

        def ending(loop) -> None:
            note('epoch')
            end(loop)

        CachedTower._features, OfflineLoop._end_epoch = watched, ending

    return before


def epochs(folder: Path, rank: int) -> list[list[int]]:
    """What a rank was missing in each of its epochs, the check before the first one counted to it."""
    found: list[list[int]] = [[]]
    for word in lines(folder / f'{rank}.jsonl'):
        if word == 'epoch':
            found.append([])
        else:
            found[-1].append(word)
    return found


def losses(folder: Path) -> list[float]:
    return [record['train/loss'] for record in lines(folder / 'metrics.jsonl') if 'train/loss' in record]


def test_the_second_epoch_encodes_nothing_and_learns_the_same(tiny, rows: Path, plain, tmp_path: Path) -> None:
    options = {'epochs': 2, 'gradient_checkpointing': True, 'feature_cache_dir': tmp_path / 'kept'}
    argv = sft(tmp_path / 'run', tiny('llava'), rows, **options)
    succeed(argv, pair=IMAGE, before=count(tmp_path / 'counts'))
    first, *others = epochs(tmp_path / 'counts', 0)
    # The medium of the check before the first step, and the images.
    assert sum(first) == PICTURES + 1 and others == [[], []]
    assert losses(tmp_path / 'run') == pytest.approx(losses(plain('llava')), rel=1e-4)
    assert weights(tmp_path / 'run' / 'slice_end').keys() == weights(plain('llava') / 'slice_end').keys()


@pytest.mark.parametrize(('family', 'stage'), in_tiers([('llava', 2), ('qwen3_vl', 3)], [('llava', 2)]))
def test_ranks_that_miss_different_items_stay_in_step(
    family: str, stage: int, tiny, rows: Path, plain, tmp_path: Path
) -> None:
    options = {'ds_cfgs': zero(tmp_path, stage), 'per_device_train_batch_size': 1, 'epochs': 2}
    argv = sft(tmp_path / 'run', tiny(family), rows, feature_cache_dir=tmp_path / 'kept', **options)
    ended = run(argv, 2, IMAGE, count(tmp_path / 'counts'), timeout=120)
    assert [item.code for item in ended] == [0, 0], ended[0].output
    found = [epochs(tmp_path / 'counts', rank) for rank in range(2)]
    # Both may encode the medium of the check.
    assert 0 <= sum(sum(rank[0]) for rank in found) - PICTURES - 1 <= 1
    assert all(rank[1:] == [[], []] for rank in found)
    if stage == 3:
        assert len(found[0][0]) == len(found[1][0]), 'all ranks gather the same weights'
        assert any(0 in rank[0] for rank in found), 'a rank ran its tower for the sake of the other one'
    assert losses(tmp_path / 'run') == pytest.approx(losses(plain(family)), rel=1e-4)


def test_the_dry_run_says_what_is_kept_and_refuses_a_tower_that_trains(tiny, rows: Path, tmp_path: Path) -> None:
    kept = tmp_path / 'kept'
    argv = sft(tmp_path / 'run', tiny('llava'), rows, '--dry_run', feature_cache_dir=kept)
    output = succeed(argv, pair=IMAGE)
    assert re.search(r'features kept\W+model.vision_tower', output)
    [ended] = run(
        sft(tmp_path / 'run', tiny('llava'), rows, feature_cache_dir=kept, freeze_vision_tower=False), 1, IMAGE
    )
    assert ended.code == 2 and 'Set freeze_vision_tower: True' in ended.output, ended.output
    assert not any(kept.iterdir()), 'it is known before weights are read'
