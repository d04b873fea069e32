"""Sets of texts, images, audio and videos in one run on two ranks: mixed as asked, in step, and resumed exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.algorithms.sft import SFT
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from tests.datasets.clips import clip, sound, tone
from tests.harness.ranks import run_ranks
from tests.trainers.runs import die, lines, run, sft, succeed, text_rows, warm, write_rows
from tests.trainers.test_resume import assert_same

PAIR = PAIRS['any_to_text']
SIZES = {'text': 9, 'image': 6, 'audio': 4, 'video': 3}
USABLE = {**SIZES, 'text': 8}
MEDIA = {'image': ('images', 'png'), 'audio': ('audios', 'wav'), 'video': ('videos', 'mp4')}
BUDGET = {'max_length_per_batch': 160}
KINDS: dict[str, dict[str, Any]] = {
    'concatenated': BUDGET,
    'weighted': {'train_weights': '[1, 1, 1, 1]', 'layout': 'padded', 'group_by_length': True, **BUDGET},
    'in_turn': {'train_mixing': 'round_robin'},
    'stream_concatenated': {'streaming': True, 'max_steps': 9, 'group_by_length': True, **BUDGET},
    'stream_weighted': {'streaming': True, 'max_steps': 9, 'train_weights': '[1, 0, 2, 1]'},
    'stream_in_turn': {'streaming': True, 'max_steps': 9, 'train_mixing': 'round_robin', **BUDGET},
}

Settings = Callable[..., list[str]]


@pytest.fixture(scope='module')
def settings(tiny, tmp_path_factory) -> Settings:
    """`settings(output, 'in_turn', **more)`: a run on four sets, one row of which cannot be used."""
    folder = tmp_path_factory.mktemp('sets')
    for number in range(max(SIZES.values())):
        Image.new('RGB', (56 + 28 * number, 56), (20 * number, 90, 0)).save(folder / f'{number}.png')
        (folder / f'{number}.wav').write_bytes(sound(tone(0.3 + 0.2 * number)))
        (folder / f'{number}.mp4').write_bytes(clip([0, 40, 80, 20 * number]))
    files = []
    for seed, (kind, size) in enumerate(SIZES.items()):
        rows = text_rows(size, seed)
        if kind in MEDIA:
            column, suffix = MEDIA[kind]
            rows = [{**row, column: f'{number}.{suffix}'} for number, row in enumerate(rows)]
        else:
            rows[2]['output'] = ''
        files.append(str(write_rows(folder / f'{kind}.jsonl', rows)))

    def make(output: Path, kind: str, *more: object, **changes: object) -> list[str]:
        values = {'max_skipped_ratio': 0.5, 'num_frames': 4, 'model_max_length': 512, 'learning_rate': 1e-3}
        values |= {'ds_cfgs': 'ds_z2_config.json', 'epochs': 2, **KINDS[kind], **changes}
        return sft(output, tiny('qwen2_5_omni_thinker'), files, *more, **values)

    return make


Step = dict[str, float]


def read_data(rank: int, commands: dict[str, list[str]]) -> dict[str, list[list[Step]]]:
    """What this rank is given in each step of two epochs, by kind of run."""
    from align_anything.trainers.runs.assembly import make_collator
    from align_anything.trainers.runs.data import (
        make_dataset,
        open_sources,
        row_costs,
        training_loader,
        training_sampler,
    )
    from align_anything.trainers.runs.settings import spec_of

    found: dict[str, list[list[Step]]] = {}
    spec = None
    for kind, argv in commands.items():
        resolved = settings_of(PAIR, SFT, argv, {})
        cfgs, sources = resolved.cfgs, open_sources(resolved.cfgs).training
        spec = spec or spec_of(cfgs)
        dataset = make_dataset(sources, PAIR, spec, resolved.algorithm, 'all_assistant')
        collate = make_collator(cfgs, spec, PAIR, resolved.algorithm)
        costs, unusable = row_costs(dataset, collate, cfgs)
        sampler = training_sampler(sources, dataset, collate, cfgs, costs)
        loader = training_loader(dataset, sampler, collate, cfgs)
        found[kind] = [
            [{**batch.stats, 'skipped': len(batch.skipped) + len(unusable)} for (batch,) in loader.steps(epoch)]
            for epoch in (0, 1)
        ]
        loader.close()
    return found


@pytest.fixture(scope='module')
def given(settings, tmp_path_factory) -> list[dict[str, list[list[Step]]]]:
    """What each of two ranks is given."""
    warm()
    folder = tmp_path_factory.mktemp('given')
    return run_ranks(read_data, 2, args=({kind: settings(folder / kind, kind) for kind in KINDS},))


@pytest.fixture
def both(given, kind: str) -> list[list[Step]]:
    """Sums over both ranks, for each step of each epoch."""
    assert [len(epoch) for epoch in given[0][kind]] == [len(epoch) for epoch in given[1][kind]]
    return [
        [{key: sum(step[key] for step in steps) for key in steps[0]} for steps in zip(*epochs, strict=True)]
        for epochs in zip(given[0][kind], given[1][kind], strict=True)
    ]


def total(epoch: list[Step]) -> dict[str, float]:
    return {kind: sum(step[f'samples/{kind}.jsonl'] for step in epoch) for kind in SIZES}


@pytest.mark.parametrize('kind', ['concatenated', 'in_turn', 'stream_concatenated', 'stream_in_turn'])
def test_an_epoch_holds_every_usable_row_once_and_tells_of_the_other(both: list[list[Step]]) -> None:
    for epoch in both:
        assert len(epoch) > 3 and total(epoch) == USABLE
        assert sum(step['skipped'] for step in epoch) > 0


@pytest.mark.parametrize('kind', KINDS)
def test_micro_batches_keep_to_their_budget(given, kind: str) -> None:
    steps = [step for rank in given for epoch in rank[kind] for step in epoch]
    # By source, since a batch without media of a kind gets some of it on top.
    held = [sum(step[f'tokens/{name}.jsonl'] for name in SIZES) for step in steps]
    assert 0 < max(held) <= KINDS[kind].get('max_length_per_batch', float('inf'))


@pytest.mark.parametrize('kind', ['weighted'])
def test_weights_share_out_an_epoch_of_as_many_rows(both: list[list[Step]]) -> None:
    for epoch in both:
        # 22 rows in four equal shares; of the texts, one in nine cannot be used.
        shares = total(epoch)
        assert [shares[kind] for kind in MEDIA] == [6, 5, 5] and shares['text'] in (5, 6)


@pytest.mark.parametrize('kind', ['stream_weighted'])
def test_weighted_streams_are_read_through_but_for_those_of_weight_zero(both: list[list[Step]]) -> None:
    for epoch in both:
        shares = total(epoch)
        assert shares['image'] == 0 and shares['text'] >= 8
        # Twice as many audio clips as videos are sampled, give or take three deviations of a fair die.
        assert abs(shares['audio'] - 2 * shares['video']) < 3 * (6 * shares['video']) ** 0.5


@pytest.mark.parametrize('kind', ['in_turn', 'stream_in_turn'])
def test_sets_in_turn_keep_in_step_until_they_are_exhausted(both: list[list[Step]]) -> None:
    for epoch in both:
        seen = dict.fromkeys(SIZES, 0.0)
        for step in epoch:
            seen = {kind: count + step[f'samples/{kind}.jsonl'] for kind, count in seen.items()}
            # The set whose row cannot be used is one behind after its turn.
            turns = max(seen.values())
            assert all(count >= min(turns - 1 - (kind == 'text'), USABLE[kind]) for kind, count in seen.items())


def dies_in_step(rank: int) -> None:
    """Rank 1 is killed with the rows of the sixth step in its hands."""
    from align_anything.trainers.loops.offline import OfflineLoop

    inner = OfflineLoop._step

    def watched(self, loaded):
        if rank == 1 and self.progress.step == 5:
            die()
        return inner(self, loaded)

    OfflineLoop._step = watched


@pytest.mark.extended
@pytest.mark.parametrize('kind', ['weighted', 'stream_in_turn'])
def test_killed_and_resumed(settings, given, tmp_path: Path, kind: str) -> None:
    saves = {'save_interval': 2, 'save_total_limit': 2, 'num_workers': 1}
    whole, other = tmp_path / 'whole', tmp_path / 'other'
    succeed(settings(whole, kind, num_workers=1), 2, PAIR)
    records = lines(whole / 'metrics.jsonl')
    own = [[step for epoch in rank[kind] for step in epoch] for rank in given]
    for name in SIZES:
        key = f'samples/{name}.jsonl'
        expected = [one[key] + two[key] for one, two in zip(*own, strict=True)][: len(records)]
        assert [record[f'train/{key}'] for record in records][: len(expected)] == expected
    assert None in [item.code for item in run(settings(other, kind, **saves), 2, PAIR, dies_in_step)]
    output = succeed(settings(other, kind, '--resume', 'auto', **saves), 2, PAIR)
    assert f'resumed from {other}/slice_4 after' in output
    assert_same(whole, other)


@pytest.mark.extended
def test_a_stream_fills_the_cache_of_samples(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Of a stream nobody knows how long a pass is."""
    rows, kept = write_rows(tmp_path / 'rows.jsonl', text_rows(8)), tmp_path / 'kept'
    stream = {'streaming': True, 'max_steps': 2, 'sample_cache_dir': kept}
    succeed(sft(tmp_path / 'run', tiny('qwen2'), rows, **stream))
    assert any(path.is_file() for path in kept.rglob('*')) and (tmp_path / 'run' / 'slice_end').is_dir()
