"""The reference of a run: the policy without its adapter, a frozen copy, or what one of them said, kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor, nn

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.referring import Reference, Referring, without_adapter_is_reference
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_reduce_sum
from align_anything.core.logging import get_logger
from align_anything.core.parameters import is_partitioned
from align_anything.core.store import TensorStore
from align_anything.core.types import Batch, Example, MediaKind, Scored
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.reference_scores import SCORES, Indexed, Referenced, reference_keys
from align_anything.engines.base import Engine
from align_anything.models.adapter import find_adapter
from align_anything.models.fingerprint import weights_fingerprint
from align_anything.models.trainable import plain_name
from align_anything.trainers.runs.assembly import open_frozen
from align_anything.trainers.runs.checks import precision_of_reference
from align_anything.trainers.runs.prepare import prepare
from align_anything.trainers.runs.settings import DTYPES, frozen_config, precision_of

logger = get_logger(__name__)

Scorer = Callable[..., Scored]
"""Scores a Batch, with what the policy is asked for beside, by name."""


def make_roles(
    cfgs: RunCfgs,
    algorithm: Algorithm,
    policy: Engine,
    training: ExampleDataset,
    held_out: Sequence[ExampleDataset],
) -> tuple[dict[str, Scorer], Indexed, Sequence[Indexed]]:
    """What scores batches beside the policy, by role, and the rows to train and to evaluate on.

    To be called before the policy has changed or resumed, while it is the model that training starts from.
    """
    if not algorithm.refers:
        return {}, training, held_out
    if algorithm.reference_cache_dir is not None:
        fingerprint, setting = reference_fingerprint(cfgs, algorithm), 'train_cfgs.reference_cache_dir'
        store = TensorStore(algorithm.reference_cache_dir, 'reference', fingerprint, setting)
        maker = ReferenceScores(store, _start_or_copy(cfgs, algorithm, policy), policy.device)
        for dataset in (training, *held_out):
            prepare([maker], dataset, policy.policy.collate, cfgs, policy.device)
        rows, *others = (Referenced(dataset, store) for dataset in (training, *held_out))
        return {}, rows, others
    return {'reference': reference_scorer(cfgs, algorithm, policy)}, training, held_out


def reference_scorer(
    cfgs: RunCfgs,
    algorithm: Reference,
    policy: Engine,
    temperature: float = 1.0,
    of_media: Mapping[MediaKind, float] = MappingProxyType({}),
) -> Scorer:
    """The reference at the temperatures of the policy: the model under its adapter, else a frozen copy."""
    if without_adapter_is_reference(cfgs, algorithm):
        logger.info('reference: the model without the adapter')
        return adapter_off(policy)
    return frozen_copy(cfgs, algorithm, policy, temperature, of_media)


def reference_fingerprint(cfgs: RunCfgs, algorithm: Referring) -> list[str]:
    """Tells the reference from others: by its weights, those under its adapter, its precision and quantisation."""
    source = algorithm.reference_model_name_or_path or cfgs.model_cfgs.model_name_or_path
    adapter = find_adapter(source)
    told = [weights_fingerprint(item) for item in (source, *([adapter.require_base()] if adapter else []))]
    told.append(precision_of_reference(cfgs, algorithm))
    if cfgs.bnb_cfgs.use_bnb:
        told.extend(str(value) for value in cfgs.bnb_cfgs.model_dump().values())
    return told


@dataclass(frozen=True)
class ReferenceScores:
    """Makes what the reference `scorer` gives to the trained tokens of each response: an entry for each of them."""

    store: TensorStore
    scorer: Scorer
    device: torch.device
    name: str = 'reference scores'

    def keys(self, example: Example) -> list[str]:
        """Returns the keys of the responses, and of the unmatched one at the end where there is one."""
        return reference_keys(self.store, example)

    def make(
        self, batch: Batch, keys: Sequence[Sequence[str]], missing: Collection[str]
    ) -> dict[str, dict[str, Tensor]]:
        """Scores the responses of a batch, and the unmatched ones where any rank has such."""
        compares = torch.tensor(float(batch.unmatched is not None), device=self.device)
        found = _by_key(batch, keys, self.scorer, self.device, last=False)
        if all_reduce_sum(compares):
            unmatched = batch.unmatched is not None
            found |= _by_key(batch.unmatched or batch, keys, self.scorer, self.device, last=unmatched)
        return found


def _by_key(
    batch: Batch, keys: Sequence[Sequence[str]], scorer: Scorer, device: torch.device, last: bool
) -> dict[str, dict[str, Tensor]]:
    """Scores a batch; with `last`, one of unmatched responses, whose keys stand last in those of each row."""
    pieces = batch.by_response(scorer(batch.to(device)).values.float().cpu())
    owned = torch.bincount(batch.examples_of_responses).tolist()
    # An empty micro-batch has a response without a key.
    pairs = zip(owned, keys, strict=False)
    flat = [key for number, own in pairs for key in (own[-1:] if last else own[:number])]
    return {key: {SCORES: piece} for key, piece in zip(flat, pieces, strict=False)}


def _start_or_copy(cfgs: RunCfgs, algorithm: Referring, policy: Engine) -> Scorer:
    """The policy itself where it is the reference as long as it has not been trained, else a copy.

    A copy is loaded when it is first asked, which ranks do together: there may be nothing left to score.
    """
    if algorithm.reference_model_name_or_path in (None, cfgs.model_cfgs.model_name_or_path) and (
        algorithm.reference_dtype in ('auto', precision_of(cfgs))
    ):
        return policy.infer
    copy = cache(lambda: frozen_copy(cfgs, algorithm, policy))
    return lambda batch: copy()(batch)


def adapter_off(policy: Engine) -> Scorer:
    """Scores with the weights under the adapter that `policy` trains."""

    def score(batch: Batch, **asked: bool) -> Scored:
        with policy.policy.model.disable_adapter():
            return policy.infer(batch, **asked)

    return score


def frozen_copy(
    cfgs: RunCfgs,
    algorithm: Reference,
    policy: Engine,
    temperature: float = 1.0,
    of_media: Mapping[MediaKind, float] = MappingProxyType({}),
) -> Scorer:
    """Loads the reference and lets it share the weights that the policy keeps frozen too."""
    source = algorithm.reference_model_name_or_path or cfgs.model_cfgs.model_name_or_path
    precision = precision_of_reference(cfgs, algorithm)
    config = frozen_config(cfgs, precision, algorithm.reference_ds_cfgs)
    engine = open_frozen(
        cfgs, policy.policy.collate, source, scores=algorithm.scores, dtype=DTYPES[precision], config=config
    )
    engine.policy.set_temperature(temperature, of_media)
    shared = share_frozen(policy.policy.model, engine.policy.model)
    logger.info('reference: a frozen copy of %s in %s, %d weights shared with the policy', source, precision, shared)
    return engine.score


def share_frozen(policy: nn.Module, reference: nn.Module) -> int:
    """Gives weights of `reference` that `policy` keeps frozen, and that are equal, one storage; returns how many."""
    theirs = {plain_name(name): parameter for name, parameter in reference.named_parameters()}
    shared = 0
    for name, parameter in policy.named_parameters():
        other = theirs.get(plain_name(name))
        if other is None or parameter.requires_grad or is_partitioned(parameter) or is_partitioned(other):
            continue
        if parameter.dtype == other.dtype and torch.equal(parameter, other):
            other.data = parameter.data
            shared += parameter.numel()
    return shared
