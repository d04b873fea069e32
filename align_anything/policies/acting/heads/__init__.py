"""How actions are scored and sampled: one file for each kind of head."""

from __future__ import annotations

from align_anything.policies.acting.heads.base import Head
from align_anything.policies.acting.heads.categorical import Categorical
from align_anything.policies.acting.heads.gaussian import Gaussian
from align_anything.policies.acting.heads.l1 import L1


def make_head(name: str, mean: bool = False) -> Head:
    """Returns the head of a configuration; `mean` says whether densities are averaged over the numbers of a chunk."""
    return Categorical() if name == 'categorical' else Gaussian(mean) if name == 'gaussian' else L1()
