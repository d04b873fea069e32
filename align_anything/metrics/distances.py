"""How far two sets of features are apart, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DEGREE = 3


class Spread(NamedTuple):
    """A mean over subsets, and the standard deviation over them."""

    mean: float
    deviation: float


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Returns the squared Fréchet distance of two Gaussians with the means and covariances of features.

    Of features of a network it is the FID (Heusel et al., 2017, arXiv:1706.08500):
    |m - n|² + tr S + tr T - 2 tr (S T)^½. The last trace is the sum of the roots of the eigenvalues of S T.
    With S = A'A and T = B'B these roots are the singular values of A B', found without squaring anything: exactly, also
    where there are fewer samples than features are wide.

    Args:
        features: `(samples, width)`, of at least two samples.
        others: `(other samples, width)`.

    Raises ValueError for fewer than two samples, and for features of different widths.
    """
    (mean, factor), (other_mean, other_factor) = _moments(features), _moments(others)
    if len(mean) != len(other_mean):
        raise ValueError(f'features are {len(mean)} and {len(other_mean)} wide')
    apart, roots = mean - other_mean, np.linalg.svd(factor @ other_factor.T, compute_uv=False)
    distance = apart @ apart + np.square(factor).sum() + np.square(other_factor).sum() - 2 * roots.sum()
    return max(float(distance), 0.0)


def kernel_distance(
    features: np.ndarray, others: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Spread:
    """Returns the unbiased squared maximum mean discrepancy with the kernel (x·y / width + 1)³, over random subsets.

    Of features of a network it is the KID (Bińkowski et al., 2018, arXiv:1801.01401). It is 0 on average where both
    come from one distribution, and so may be below it. Where no set is larger than `size`, there is one subset: all.

    Args:
        features: `(samples, width)`, of at least two samples.
        others: `(other samples, width)`.
        subsets: how many subsets are taken.
        size: samples of each, of both sides.
        seed: of the subsets.

    Raises ValueError for fewer than two samples.
    """
    features, others = _wide(features), _wide(others)
    if max(len(features), len(others)) <= size:
        return Spread(_discrepancy(features, others), 0.0)
    random = np.random.default_rng(seed)
    found = [_discrepancy(_subset(features, size, random), _subset(others, size, random)) for _ in range(subsets)]
    return Spread(float(np.mean(found)), float(np.std(found)))


def _discrepancy(features: np.ndarray, others: np.ndarray) -> float:
    own, theirs, across = _kernel(features, features), _kernel(others, others), _kernel(features, others)
    return _off_diagonal_mean(own) + _off_diagonal_mean(theirs) - 2 * float(across.mean())


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** DEGREE


def _off_diagonal_mean(kernel: np.ndarray) -> float:
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def _subset(features: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    return features[random.choice(len(features), min(size, len(features)), replace=False)]


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean `(width,)`, and a factor A `(at most width, width)` of the covariance A'A."""
    features = _wide(features)
    mean = features.mean(0)
    return mean, np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode='r')


def _wide(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f'features of at least two samples are needed, but there are {features.shape}')
    return features
