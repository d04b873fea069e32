"""A small flow model learns to paint shapes in the colour that it is asked for, and which colour is preferred.

The shares are those of pictures that diffusers samples from what training exported; one of four colours is right by
chance. Half of the captions name a shape alone: what is painted then is what pairs are about.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.testing import shapes
from align_anything.testing.tiny import build
from tests.learning.painted import (
    NAMED,
    PAIRED,
    PAIRS,
    PLAIN,
    RANKED,
    colours_asked_for,
    share_of,
    taught,
    teach,
    train,
)
from tests.trainers.runs import lines

pytestmark = pytest.mark.timeout(900)


def test_a_painter_learns_the_colours_that_it_is_asked_for(shared_cache: Path) -> None:
    model = taught(shared_cache) / 'model'
    pictures = shapes.paint(model, NAMED)
    assert colours_asked_for(pictures) >= 0.85
    painted = shapes.paint(model, PLAIN, seed=1)
    assert all(0.05 <= share_of(colour, painted) <= 0.5 for colour in shapes.COLOURS)


@pytest.mark.extended
def test_captions_of_other_pictures_teach_no_colours(tmp_path: Path) -> None:
    """Pictures and captions are the same, and learned as long; colours come out right by chance alone."""
    pictures = shapes.paint(teach(tmp_path, shuffled=True), NAMED)
    shares = [share_of(colour, pictures) for colour in shapes.COLOURS]
    assert min(shares) >= 0.05 and sum(shares) >= 0.9
    assert colours_asked_for(pictures) <= 0.45


@pytest.mark.extended
@pytest.mark.parametrize('name', PAIRED)
def test_the_preferred_colour_is_painted_where_none_is_asked_for(shared_cache: Path, tmp_path: Path, name: str) -> None:
    """What is preferred is the colour that was painted least often; those that are asked for stay."""
    model = taught(shared_cache) / 'model'
    before = shapes.paint(model, PLAIN, seed=1)
    preferred = min(shapes.COLOURS, key=lambda colour: share_of(colour, before))
    rows = shapes.write_shape_pairs(tmp_path / 'pairs', PAIRS, preferred=[preferred], named=True)
    adapter = train(name, tmp_path / 'run', model, rows, **PAIRED[name])
    after = shapes.paint(model, PLAIN, adapter=adapter, seed=1)
    assert share_of(preferred, before) <= 0.25 and share_of(preferred, after) >= 0.5
    assert colours_asked_for(shapes.paint(model, NAMED, adapter=adapter)) >= 0.75


@pytest.mark.extended
def test_a_model_that_sees_pictures_learns_which_colour_is_preferred(tmp_path: Path) -> None:
    """Of pairs that it never saw."""
    rows, held_out = (shapes.write_shape_pairs(tmp_path / f'{seed}', 100, seed=seed) for seed in (0, 1))
    judge = build('llava', tmp_path / 'judge', corpus=[*shapes.PLAIN])
    train('rm', tmp_path / 'run', judge, rows, eval_datasets=held_out, **RANKED)
    (*_, record) = (record for record in lines(tmp_path / 'run' / 'metrics.jsonl') if 'eval/loss' in record)
    assert record['eval/reward_accuracy'] >= 0.9
