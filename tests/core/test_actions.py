"""Actions survive the way to codes and to a file and back, and what users get wrong about them is told by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from align_anything.core.actions import Actions, ActionSpace, Statistics
from align_anything.core.errors import ModelError, SampleError

STATISTICS = Statistics(
    low=(-2.0, 0.0, 5.0, 0.0),
    high=(2.0, 10.0, 5.0, 1.0),
    mean=(0.5, 4.0, 5.0, 0.5),
    std=(1.5, 2.0, 0.0, 0.5),
    mask=(True, True, True, False),
)
ARM = ActionSpace(dimensions=('x', 'y', 'still', 'gripper'), statistics={'kitchen': STATISTICS})
WALK = ActionSpace(names=('left', 'right', 'forward'), chunk=2, executed=1)


def steps(*values):
    return Actions(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize('binning', ['uniform', 'openvla'])
@pytest.mark.parametrize('normalization', ['quantiles', 'min_max'])
def test_numbers_survive_within_half_a_bin(binning, normalization):
    space = replace(ARM, binning=binning, normalization=normalization)
    values = torch.rand(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = values * torch.tensor([4.0, 10.0, 0.0, 1.0]) + torch.tensor([-2.0, 0.0, 5.0, 0.0])
    codes = space.encode(Actions(values))
    assert codes.shape == (4, 50) and 0 <= codes.min() and codes.max() < 256
    back = space.decode(codes).values
    width = 2.0 / (255 if binning == 'openvla' else 256)
    half_bins = torch.tensor([2.0, 5.0, 0.0, 1.0]) * width / 2
    assert bool(((back - values).abs() <= half_bins + 1e-12).all())
    assert torch.equal(space.encode(Actions(back)), codes)


def test_bins_of_openvla_are_those_of_its_own_arithmetic():
    # Its tokenizer: edges by linspace, numbers by digitize, ids from the end, centres of the 255 bins between edges.
    space = ActionSpace(dimensions=('x',), normalization='identity', binning='openvla')
    edges = np.linspace(-1, 1, 256)
    values = np.concatenate([edges, edges[:-1] + 1e-9, [-1.0, 1.0, 0.0, 0.999]]).clip(-1, 1)
    ids = 32000 - np.digitize(values, edges)
    codes = space.encode(Actions(torch.from_numpy(values)[:, None]))
    assert torch.equal(codes[0] + 32000 - 256, torch.from_numpy(ids))
    centres = (edges[:-1] + edges[1:]) / 2
    decoded = centres[np.clip(32000 - ids - 1, 0, 254)]
    np.testing.assert_allclose(space.decode(codes).values[:, 0].numpy(), decoded, rtol=0, atol=1e-12)
    # The last bin holds the 1 alone and is read as the one below it; ids do not run over.
    assert space.encode(steps([1.0])).item() == 0 and space.encode(steps([-1.0])).item() == 255
    assert space.decode(torch.tensor([[0, 1]])).values[0] == space.decode(torch.tensor([[0, 1]])).values[1]


def test_uniform_bins_begin_and_end_with_the_interval():
    space = ActionSpace(dimensions=('x',), normalization='identity', bins=4)
    assert space.encode(steps([-1.0], [-0.5001], [-0.5], [0.0], [0.9999], [1.0])).tolist() == [[0, 0, 1, 2, 3, 3]]
    assert space.decode(torch.tensor([[0, 3]])).values.flatten().tolist() == [-0.75, 0.75]


def test_what_lies_beyond_the_percentiles_is_clipped_by_bins_alone():
    values = steps([6.0, 5.0, 5.0, 1.0])
    assert ARM.normalized(values.values)[0, 0] == 3.0
    assert ARM.decode(ARM.encode(values)).values[0, 0] == pytest.approx(2.0, abs=0.01)


def test_a_gripper_keeps_its_numbers_and_its_sign():
    opened = steps([0.0, 5.0, 5.0, 1.0], [0.0, 5.0, 5.0, 0.0], [0.0, 5.0, 5.0, -1.0])
    assert ARM.normalized(opened.values)[:, 3].tolist() == [1.0, 0.0, -1.0]
    gripper = ARM.decode(ARM.encode(opened)).values[:, 3]
    assert gripper.tolist() == pytest.approx([1.0, 0.0, -1.0], abs=0.01)
    with pytest.raises(SampleError, match="'gripper' of an action is 100 from 0, and is not normalised"):
        ARM.encode(steps([0.0, 5.0, 5.0, 100.0]))


def test_a_dimension_that_never_moved_is_zero_and_comes_back_as_it_was():
    assert ARM.normalized(steps([0.0, 5.0, 5.0, 0.0]).values)[0, 2] == 0.0
    assert ARM.decode(torch.tensor([[3], [9], [200], [0]])).values[0, 2] == 5.0


def test_mean_and_std_are_undone():
    space = replace(ARM, normalization='mean_std')
    values = steps([2.0, 8.0, 5.0, 1.0]).values
    assert space.normalized(values).tolist() == [[1.0, 2.0, 0.0, 1.0]]
    assert torch.equal(space.restored(space.normalized(values)), values)


def test_statistics_are_those_of_the_dataset_that_is_named():
    other = replace(STATISTICS, high=(4.0, 20.0, 5.0, 1.0), low=(-4.0, -20.0, 5.0, 0.0))
    space = replace(ARM, statistics={'kitchen': STATISTICS, 'bridge': other})
    with pytest.raises(SampleError, match=r"no statistics of a dataset 'kitchn'. Did you mean 'kitchen'\?.*bridge, ki"):
        space.of('kitchn')
    with pytest.raises(SampleError, match='name a dataset. There are: bridge, kitchen'):
        space.encode(steps([0.0, 0.0, 5.0, 0.0]))
    values = steps([1.0, 5.0, 5.0, 0.0]).values
    codes = space.encode(Actions(values, dataset='bridge'))
    assert space.decode(codes, 'bridge').values[0].tolist() == pytest.approx([1.0, 5.0, 5.0, 0.0], abs=0.1)
    # The wrong ones move the arm half as far.
    assert space.decode(codes, 'kitchen').values[0, 0] == pytest.approx(0.5, abs=0.02)
    assert replace(space, dataset='bridge').of() is other


def test_names_are_codes_of_one_book():
    actions = Actions(names=('forward', 'left'))
    assert WALK.books == (3,)
    assert WALK.encode(actions).tolist() == [[2, 0]]
    assert WALK.decode(WALK.encode(actions)).names == actions.names
    assert actions.first(1).names == ('forward',)
    with pytest.raises(SampleError, match="the action is 'jump', and should be one of left, right, forward"):
        WALK.encode(Actions(names=('jump',)))
    with pytest.raises(SampleError, match='the action is numbers, and should be one of'):
        WALK.encode(steps([0.0]))


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ([[0.0, 1.0]], 'an action has 2 numbers, and should have 4: x, y, still, gripper'),
        ([[0.0, 1.0, 5.0, float('nan')]], 'not finite'),
    ],
)
def test_numbers_of_another_robot_are_refused(values, message):
    with pytest.raises(SampleError, match=message):
        ARM.encode(steps(*values))
    with pytest.raises(SampleError, match="the action is 'left', and should be 4 numbers"):
        ARM.encode(Actions(names=('left',)))


@pytest.mark.parametrize('space', [ARM, WALK])
def test_a_space_survives_as_json(space):
    assert ActionSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'dimensions': []}, 'either names, one of which is chosen, or dimensions'),
        ({'names': ['a', 'b']}, 'either names, one of which is chosen, or dimensions'),
        ({'dimensions': ['x', 'x', 'still', 'gripper']}, "dimensions has 'x' twice"),
        ({'normalization': 'quantile'}, r"normalization 'quantile' is none of quantiles.*Did you mean 'quantiles'\?"),
        ({'chunk': 2, 'executed': 3}, '3 steps are done of a chunk of 2'),
        ({'bins': 1}, '1 bins tell nothing apart'),
        ({'tokens': 'tail', 'normalization': 'mean_std'}, 'mean_std has no bounds'),
        ({'tokens': 'words'}, 'numbers are not written as words'),
        ({'first_ids': [7]}, '1 first_ids for 4 dimensions'),
        ({'dataset': 'kitchn'}, "there are no statistics of 'kitchn', only of kitchen"),
        ({'unnorm_key': 'kitchen'}, "has no 'unnorm_key'"),
        ({'statistics': {'kitchen': {'q01': [0.0]}}}, 'is no action space'),
        ({'pictures': {'rotat': 180}}, r"pictures has no 'rotat'. Did you mean 'rotate'\?"),
        ({'pictures': {'rotate': 45}}, 'rotate of pictures is 45'),
        ({'pictures': {'flip': 'horizontl'}}, r"flip of pictures is 'horizontl'. Did you mean 'horizontal'\?"),
        ({'pictures': {'size': [224]}}, r'size of pictures is \[224\]'),
        ({'pictures': 'rotate'}, "pictures is 'rotate'"),
        ({'dimensions': ['x', 'y']}, 'statistics of kitchen: low has 4 numbers for 2 dimensions'),
    ],
)
def test_a_file_that_is_no_space_says_what_is_wrong(changes, message):
    with pytest.raises(ModelError, match=message):
        ActionSpace.from_json({**ARM.to_json(), **changes})


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'names': 'left', 'dimensions': []}, "names is the text 'left', and should be a list"),
        ({'dimensions': ['x', 2]}, 'dimensions has 2, and should have texts'),
        ({'bins': 2.5}, 'bins has 2.5, and should have whole numbers'),
        ({'chunk': 1.5, 'executed': 1.5}, 'chunk has 1.5'),
        ({'first_ids': [-5, -5]}, 'first_ids has -5'),
        ({'statistics': {'low': [float('nan'), 0]}}, 'statistics of table: low has nan, and should have finite'),
        ({'statistics': {'high': [float('inf'), 1]}}, 'high has inf'),
        ({'statistics': {'mean': ['0', 0]}}, "mean has '0'"),
        ({'statistics': {'std': [-1, 1]}}, "std of 'x' is below 0"),
        ({'statistics': {'mask': ['false', 'true']}}, "mask has 'false', and should have true and false"),
    ],
)
def test_a_file_whose_values_are_of_another_kind_moves_no_robot(changes, told):
    numbers = {'low': [0, 0], 'high': [1, 1], 'mean': [0, 0], 'std': [1, 1], 'mask': [True, True]}
    statistics = {'table': {**numbers, **changes.get('statistics', {})}}
    written = {'dimensions': ['x', 'y'], **changes, 'statistics': statistics}
    with pytest.raises(ModelError, match=re.escape(told)):
        ActionSpace.from_json(written)


@pytest.mark.parametrize('known', [None, {}, {'rotate': 180, 'flip': 'vertical', 'size': [224, 224]}])
def test_what_is_done_to_pictures_may_be_unknown(known: Any) -> None:
    assert ActionSpace.from_json({'names': ['left'], 'pictures': known}).pictures == known
